"""Run the checks of ``wsi-idc doctor``; an error or a timeout in a check becomes a result."""

import contextlib
import os
import pwd
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path

from wsi_idc.core.errors import first_line

OK, NOTE, PROBLEM = "ok", "note", "problem"
SECONDS = 15.0
# Each check has a name, a "module.function" and a timeout in s. A module is imported when its check
# runs, because packages that the module needs may be missing. The first check that imports torch
# may take long.
_CHECKS = (
    ("program", "packages.program", SECONDS),
    ("python", "packages.python", SECONDS),
    ("packages", "packages.packages", SECONDS),
    ("OpenSlide", "packages.openslide", SECONDS),
    ("processor", "machine.processor", 120),
    ("cores", "machine.cores", SECONDS),
    ("memory", "machine.memory", SECONDS),
    ("/dev/shm", "machine.shared_memory", SECONDS),
    ("torch", "machine.torch_build", SECONDS),
    ("driver", "machine.driver", SECONDS),
    ("GPUs", "machine.gpus", 60),
    ("SLURM", "machine.slurm", 30),
    ("output disk", "disk.room", 60),
    ("writing", "disk.writing", 60),
    ("file locks", "disk.locks", SECONDS),
    ("HDF5 files", "disk.hdf5", SECONDS),
    ("scratch", "disk.scratch", SECONDS),
    ("ImageNet weights", "project.weights", 60),
    ("data", "project.data", 60),
    ("runs", "project.runs", SECONDS),
)


@dataclass(frozen=True)
class CheckResult:
    """Result of a check: one row of the report of ``wsi-idc doctor``.

    Attributes:
        name: Name of the checked part of the machine or of the installation.
        value: Result of the check.
        state: "ok", "note" (useful information) or "problem" (needs a repair).
        advice: Remedy for the note or problem; empty if there is no remedy.
    """

    name: str
    value: str
    state: str = OK
    advice: str = ""


def make_result(name: str, value: str, is_bad: bool, advice: str, state: str = NOTE) -> CheckResult:
    """Return a result. If ``is_bad``, it has ``state`` and ``advice``; else its state is "ok"."""
    return CheckResult(name, value, state, advice) if is_bad else CheckResult(name, value)


def run_checks(*, data: Path | None, out: Path) -> Iterator[CheckResult]:
    """Run all checks and yield their results; hide the home folder and the user name in the texts.

    Args:
        data: Value of ``--data``.
        out: Folder for results; the folder need not exist yet.
    """
    on_disk = dict.fromkeys(("disk.room", "disk.writing", "disk.locks", "disk.hdf5"), (out,))
    arguments: dict[str, tuple[Path | None, ...]] = {**on_disk, "project.data": (data,)}
    for name, function, seconds in _CHECKS:
        check = partial(_lazy_check, function, *arguments.get(function, ()))
        yield from map(hide_names, run_check(name, check, seconds=seconds))


def _lazy_check(function: str, *arguments: Path | None) -> Iterator[CheckResult]:
    module, _, name = function.partition(".")
    yield from getattr(import_module(f"wsi_idc.doctor.{module}"), name)(*arguments)


def run_check(
    name: str, check: Callable[[], Iterable[CheckResult]], *, seconds: float = SECONDS
) -> list[CheckResult]:
    """Run one check in a thread; return its results. An error or a timeout becomes the last result.

    Args:
        name: Name of the result that reports an exception or a timeout.
        check: Function that returns or yields the results of the check.
        seconds: Timeout in s; a check may hang, for example on a network disk.
    """
    results: list[CheckResult] = []

    def failure(reason: str, state: str = NOTE, advice: str = "") -> CheckResult:
        return CheckResult(name, f"the check failed: {reason}", state, advice)

    def collect() -> None:
        try:
            results.extend(check())
        except ImportError as error:
            advice = "install the program again, in a new virtual environment"
            results.append(failure(first_line(error), PROBLEM, advice))
        except Exception as error:  # noqa: BLE001 - the report continues after any error of a check
            results.append(failure(first_line(error)))

    # The thread is a daemon: if the thread hangs, the program can still end.
    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(seconds)
    if not thread.is_alive():
        return results
    advice = "the check hangs; if it reads a network disk, report this to the cluster's support"
    return [*results, failure(f"no answer in {seconds:g} s", PROBLEM, advice)]


def hide_names(result: CheckResult) -> CheckResult:
    """Replace the home folder by ~ and the user name by USER, so that a report can be published."""
    home, user = "/", ""
    # In a container, a user may have no home folder and no name.
    with contextlib.suppress(KeyError, RuntimeError):
        home = str(Path.home())
        user = pwd.getpwuid(os.getuid()).pw_name

    def hide(text: str) -> str:
        if home != "/":
            text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?=[/\s,;:)]|$)", "~", text)
        return re.sub(rf"(?<=/){re.escape(user)}(?=[/\s,;:)]|$)", "USER", text) if user else text

    return replace(result, value=hide(result.value), advice=hide(result.advice))
