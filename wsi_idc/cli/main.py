"""The command line: the group of commands and the error boundary.

Only this package imports click. A command imports heavy libraries when it runs, so that
``wsi-idc --help`` answers at once.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable

import click

from wsi_idc import __version__
from wsi_idc.cli.bench import bench
from wsi_idc.cli.compare import compare
from wsi_idc.cli.demo import demo
from wsi_idc.cli.doctor import doctor
from wsi_idc.cli.download import download, fetch_weights
from wsi_idc.cli.eval import eval_
from wsi_idc.cli.explore import explore
from wsi_idc.cli.export import export
from wsi_idc.cli.info import info
from wsi_idc.cli.job import job, status, submit
from wsi_idc.cli.map import map_
from wsi_idc.cli.output import echo_note, one_line
from wsi_idc.cli.prepare import prepare
from wsi_idc.cli.render import render
from wsi_idc.cli.report import report
from wsi_idc.cli.search import search
from wsi_idc.cli.synth import synth
from wsi_idc.cli.train import train
from wsi_idc.core.errors import StoppedError, WsiIdcError
from wsi_idc.runtime.resources import limit_spinning

_MAX_MESSAGE = 2000
_BROKEN_PIPE = 128 + signal.SIGPIPE  # the exit code that a shell reports for this signal


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a first day's work."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; the reader of standard output may have closed the pipe."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _discard_output()
            return _BROKEN_PIPE


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="wsi-idc")
def group() -> None:
    """Map invasive ductal carcinoma (IDC) in breast tissue.

    From patches to a probability map and a Grad-CAM mosaic for each patient, in HDF5.
    Research use only: no output of this program is a diagnosis.

    \b
    Examples:
      wsi-idc demo                      every step on synthetic tissue
      wsi-idc prepare TREE              pack the patches of a data set
      wsi-idc train --model resnet50    train on them
      wsi-idc map --patient 10253       map a patient
    """


for _command in (
    *(demo, synth, download, prepare, explore, train, search, job, submit, status, eval_, compare),
    *(map_, render, export, report, info, fetch_weights, doctor, bench),
):
    group.add_command(_command)


def main() -> None:
    """Run the program.

    Exit codes: 0 done, 1 error of the user's situation, 2 wrong usage, 75 stopped with everything
    saved, 141 the reader of the output is gone.
    """
    limit_spinning()
    # These signals leave through every `finally`, as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _interrupt)
    sys.exit(run(lambda: group.main(prog_name="wsi-idc", standalone_mode=False)))


def run(command: Callable[[], object]) -> int:
    """Run ``command`` inside the error boundary and return the exit code."""
    try:
        result = command()
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except StoppedError as error:
        echo_note(error)
        return error.exit_code
    except WsiIdcError as error:
        _echo_error(error)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        echo_note("Stopped; nothing is half-written: run the same command again to continue.")
        return StoppedError.exit_code
    except OSError as error:
        # A full disk, a missing permission, a vanished file: a problem of the user's machine.
        if error.strerror is None:
            return _report_bug()
        _echo_error(f"{error.filename or 'the system'}: {error.strerror}; nothing is half-written")
        return 1
    except Exception:  # noqa: BLE001
        return _report_bug()


def _echo_error(message: object) -> None:
    line = one_line(message)
    # A message may quote a file, which may hold anything.
    echo_note(f"Error: {line if len(line) <= _MAX_MESSAGE else f'{line[:_MAX_MESSAGE]}...'}")


def _report_bug() -> int:
    traceback.print_exc()
    echo_note(f"This is a bug in wsi-idc {__version__}; please report all of the above.")
    return 1


def _discard_output() -> None:
    """Redirect output to /dev/null, so that flushing it at exit cannot raise BrokenPipeError."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
