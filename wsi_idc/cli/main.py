"""Main command ``wsi-idc``: the group of all commands, and the handling of their errors.

Only the package ``cli`` imports click. A command imports large libraries when it runs, not when
its module is imported, so that ``wsi-idc --help`` is fast.
"""

import difflib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

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
from wsi_idc.cli.features import features
from wsi_idc.cli.info import info
from wsi_idc.cli.job import job, status, submit
from wsi_idc.cli.map import map_
from wsi_idc.cli.models import models
from wsi_idc.cli.output import echo_note, one_line
from wsi_idc.cli.prepare import prepare
from wsi_idc.cli.render import render
from wsi_idc.cli.report import report
from wsi_idc.cli.search import search
from wsi_idc.cli.synth import synth
from wsi_idc.cli.train import train
from wsi_idc.cli.use import use
from wsi_idc.cli.view import view
from wsi_idc.core.errors import StoppedError, WsiIdcError, first_line
from wsi_idc.runtime.resources import limit_spinning
from wsi_idc.runtime.signals import STOP_SIGNALS, handle_signals, leave_terminal

_MAX_MESSAGE = 2000


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order in which a new user needs them."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; if the reader of its output has closed the pipe, return exit code 141."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Redirect closed streams to /dev/null: then no flush at exit raises BrokenPipeError.
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except BrokenPipeError:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            return 128 + signal.SIGPIPE  # the exit code that a shell reports for this signal


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="wsi-idc")
def group() -> None:
    """Map invasive ductal carcinoma (IDC) in breast tissue.

    The result is one HDF5 file for each patient, with a probability map and a Grad-CAM mosaic.
    Research use only: no output of this program is a diagnosis.

    \b
    Examples:
      wsi-idc demo                      every step on synthetic tissue
      wsi-idc prepare TREE              pack the patches of a data set
      wsi-idc train --model resnet50    train on the pack
      wsi-idc map --patient 10253       map a patient
    """


for _command in (
    *(demo, synth, download, prepare, explore, train, search, job, submit, status, eval_, compare),
    *(use, map_, view, render, export, report, info, features, models, fetch_weights, doctor),
    bench,
):
    group.add_command(_command)


def main() -> None:
    """Run the program.

    Exit codes: 0 done; 1 error in the data, the files or the machine, or a bug; 2 wrong usage;
    75 stopped, and all finished work is saved; 141 the reader of the output has closed the pipe.
    """
    _open_streams()
    # A notebook sets MPLBACKEND to its own backend, which may not be installed here. Variables of
    # tqdm and Bokeh can change the output, or cause an error at import.
    os.environ["MPLBACKEND"] = "agg"
    for name in list(os.environ):
        if name.startswith(("TQDM_", "BOKEH_")):
            del os.environ[name]
    limit_spinning()
    # Raise KeyboardInterrupt at these signals, as for Ctrl-C, so that every `finally` block runs.
    handle_signals(set(STOP_SIGNALS) - {signal.SIGINT}, _interrupt)
    sys.exit(
        run(_check_folder) or run(lambda: group.main(prog_name="wsi-idc", standalone_mode=False))
    )


def run(command: Callable[[], object]) -> int:
    """Run ``command``, print its error if there is one, and return the exit code."""
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
        if isinstance(error, click.NoSuchOption):
            error.possibilities = _similar_options(error)  # type: ignore[misc]
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        echo_note("Stopped; each written file is complete. Run the same command again to continue.")
        return StoppedError.exit_code
    except (ImportError, MemoryError) as error:
        reason = first_line(error) if isinstance(error, ImportError) else "out of memory"
        is_missing = isinstance(error, ModuleNotFoundError)  # a lack of memory never raises this
        memory = "" if is_missing else "allow more memory (ulimit -v, --mem of SLURM), or "
        _echo_error(f"{reason}; {memory}check the installation with wsi-idc doctor")
        return 1
    except Exception as error:  # noqa: BLE001
        # The system sets strerror, for example for a full disk. Without strerror, this is a bug.
        if isinstance(error, OSError) and error.strerror is not None:
            where = error.filename or "the system"
            _echo_error(f"{where}: {error.strerror}; each written file is complete")
        else:
            traceback.print_exc()
            echo_note(f"This is a bug in wsi-idc {__version__}; please report all of the above.")
        return 1


def _similar_options(error: click.NoSuchOption) -> list[str]:
    """Return the options that the user may have meant by an unknown option.

    Three rules are tried until one rule finds options. Rule 1: the unknown option has the initials
    of the option (--lr finds --learning-rate). Rule 2: the option contains the name of the unknown
    option, or the unknown option begins with its name. Rule 3: the two names are similar.
    """
    given = error.option_name.lstrip("-")
    params = error.ctx.command.params if error.ctx else []
    options = [name for param in params for name in (*param.opts, *param.secondary_opts)]
    names = {name.lstrip("-"): name for name in options if name.startswith("--")}
    initials = [n for n in names if len(given) > 1 and "".join(w[0] for w in n.split("-")) == given]
    parts = [n for n in names if len(given) > 2 and (given in n or given.startswith(n))]
    similar = initials or parts or difflib.get_close_matches(given, names)
    return sorted(names[name] for name in similar)


def _echo_error(message: object) -> None:
    line = one_line(message)
    # Limit the length: a message may quote a long text from a file.
    echo_note(f"Error: {line if len(line) <= _MAX_MESSAGE else f'{line[:_MAX_MESSAGE]}...'}")


def _open_streams() -> None:
    """Open /dev/null for each standard stream that the caller of the program has closed.

    Otherwise the next file that the program opens would get the descriptor of the closed stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)  # child processes use the stream too
            setattr(sys, name, os.fdopen(null, mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise WsiIdcError("the working folder was removed; cd to a folder that exists") from None


def _interrupt(signum: int, frame: object) -> None:
    if signum == signal.SIGHUP:
        leave_terminal()
    raise KeyboardInterrupt
