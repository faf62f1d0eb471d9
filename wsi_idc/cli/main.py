"""The command line: parse, one call, say the result.

This is the one place that imports click. A command imports what it needs when it runs, so that
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
from wsi_idc.cli.download import download
from wsi_idc.cli.eval import eval_
from wsi_idc.cli.explore import explore
from wsi_idc.cli.export import export
from wsi_idc.cli.fetch_weights import fetch_weights
from wsi_idc.cli.info import info
from wsi_idc.cli.job import job
from wsi_idc.cli.map import map_
from wsi_idc.cli.output import one_line
from wsi_idc.cli.prepare import prepare
from wsi_idc.cli.render import render
from wsi_idc.cli.report import report
from wsi_idc.cli.search import search
from wsi_idc.cli.status import status
from wsi_idc.cli.submit import submit
from wsi_idc.cli.synth import synth
from wsi_idc.cli.train import train
from wsi_idc.core.errors import StoppedError, WsiIdcError
from wsi_idc.runtime.resources import limit_spinning

_LONGEST_ERROR = 2000
_READER_LEFT = 128 + signal.SIGPIPE  # as a shell says of those that the signal ends


class _Commands(click.Group):
    """All commands, in the order of a first day's work."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands as they were added."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command, to which nobody may be listening any more."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _forget_reader()
            return _READER_LEFT


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
      wsi-idc demo                      the whole job on synthetic tissue
      wsi-idc prepare TREE              pack the patches of a data set
      wsi-idc train --model resnet50    train on them
      wsi-idc map --patient 10253       map a patient
    """


_COMMANDS = (
    demo,
    synth,
    download,
    prepare,
    explore,
    train,
    search,
    job,
    submit,
    status,
    eval_,
    compare,
    map_,
    render,
    export,
    report,
    info,
    fetch_weights,
    doctor,
    bench,
)
for _command in _COMMANDS:
    group.add_command(_command)


def main() -> None:
    """Run the program.

    It ends with 0 done, 1 the user's trouble, 2 bad usage, 75 stopped with all saved, 141 nobody
    reads what it says.
    """
    limit_spinning()
    # Asked to end, leave through every `finally`, as Ctrl-C does.
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
        click.echo(one_line(error), err=True)
        return error.exit_code
    except WsiIdcError as error:
        _say_error(error)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            "Stopped; nothing is half-written: the same command goes on, or begins anew.", err=True
        )
        return StoppedError.exit_code
    except OSError as error:
        # A full disk, a missing permission, a file that vanished: the user's to mend.
        if error.strerror is None:
            return _report_bug()
        _say_error(f"{error.filename or 'the system'}: {error.strerror}; nothing is half-written")
        return 1
    except Exception:  # noqa: BLE001
        return _report_bug()


def _say_error(message: object) -> None:
    line = one_line(message)
    # A file may hold anything, and a message may quote it.
    line = line if len(line) <= _LONGEST_ERROR else f"{line[:_LONGEST_ERROR]}..."
    click.echo(f"Error: {line}", err=True)


def _report_bug() -> int:
    traceback.print_exc()
    click.echo(f"This is a bug in wsi-idc {__version__}; please report all of the above.", err=True)
    return 1


def _forget_reader() -> None:
    """Let what is still to be written go nowhere, at the interpreter's exit too."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
