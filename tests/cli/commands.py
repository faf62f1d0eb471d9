"""Run command lines: in this process, or in a process that can be stopped and killed.

Child processes are forked from a server that has imported torch already: importing it takes
seconds of CPU time.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from wsi_idc.cli.main import group, main, run

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["tests.cli.commands", "wsi_idc.demo"])


@dataclass(frozen=True)
class CommandResult:
    """Exit code, standard output and standard error of a command line."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only line that begins with Error."""
        lines = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


RunCommand = Callable[..., CommandResult]


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> CommandResult:
    """Run a command line in this process."""
    words = [str(argument) for argument in arguments]
    capsys.readouterr()
    code = run(lambda: group.main(words, prog_name="wsi-idc", standalone_mode=False))
    return CommandResult(code, *capsys.readouterr())


class Command:
    """A command line that runs in a process of its own, in the working folder.

    The process runs the script ``hook`` first. The file ``out`` has its standard output and its
    standard error.
    """

    def __init__(self, *arguments: object, hook: Path | None = None) -> None:
        words = [str(argument) for argument in arguments]
        self.out = Path(f".{'-'.join(words).replace('/', '-')[:80]}-{id(self)}.out").absolute()
        self.out.touch()
        self.process: BaseProcess = _FORKED.Process(
            target=_run_main, args=(words, str(self.out), str(Path.cwd()), dict(os.environ), hook)
        )
        self.process.start()

    def wait(self, timeout: float = 120) -> int | None:
        """Wait for the end and return the exit code; a signal's is negative."""
        self.process.join(timeout)
        return self.process.exitcode

    def text(self) -> str:
        """Return the output so far."""
        return self.out.read_text()

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


def _run_main(
    words: list[str], out: str, folder: str, environment: dict[str, str], hook: Path | None
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(out, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    if hook:
        runpy.run_path(str(hook))
    sys.argv = ["wsi-idc", *words]
    main()
