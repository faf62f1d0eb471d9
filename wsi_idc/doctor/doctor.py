"""Run the checks of ``wsi-idc doctor``; a check neither raises nor hangs."""

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
# Name, "module.function" and timeout in s. The modules are imported when the check runs: a broken
# installation may lack what they import. The first check that imports torch may take long.
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
    """One row of the report.

    Attributes:
        name: The part of the machine or installation that was checked.
        value: Result of the check.
        state: "ok", "note" (worth knowing) or "problem" (needs a repair).
        advice: What to do about a note or problem, if anything.
    """

    name: str
    value: str
    state: str = OK
    advice: str = ""


def make_result(name: str, value: str, is_bad: bool, advice: str, state: str = NOTE) -> CheckResult:
    """Return a row that is a note or problem with advice if ``is_bad``, else ok."""
    return CheckResult(name, value, state, advice) if is_bad else CheckResult(name, value)


def run_checks(*, data: Path | None, out: Path) -> Iterator[CheckResult]:
    """Run every check and yield its results; home folder and user name are replaced.

    Args:
        data: Value of ``--data``.
        out: Folder for results; it need not exist.
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
    """Run one check in a thread; an exception or a timeout becomes the last row.

    Args:
        name: Name of the row for an exception or a timeout.
        check: Returns or yields the results.
        seconds: Timeout; a network disk may never answer.
    """
    results: list[CheckResult] = []
    errors: list[Exception] = []

    def collect() -> None:
        try:
            results.extend(check())
        except Exception as error:  # noqa: BLE001 - the report continues after any error
            errors.append(error)

    # A daemon thread does not keep the program from ending.
    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(seconds)
    rows = list(results)
    if thread.is_alive():
        advice = "the check hangs; if it reads a network disk, report this to the cluster's support"
        reason, state = f"no answer in {seconds:g} s", PROBLEM
    elif errors and isinstance(errors[0], ImportError):
        advice = "install the program again, in an environment of its own"
        reason, state = first_line(errors[0]), PROBLEM
    elif errors:
        reason, state, advice = first_line(errors[0]), NOTE, ""
    else:
        return rows
    return [*rows, CheckResult(name, f"the check failed: {reason}", state, advice)]


def hide_names(result: CheckResult) -> CheckResult:
    """Replace the home folder by ~ and the user name by USER, so that anyone may see the row."""
    home, user = "/", ""
    # In a container the user may have neither a home folder nor a name.
    with contextlib.suppress(KeyError, RuntimeError):
        home = str(Path.home())
        user = pwd.getpwuid(os.getuid()).pw_name

    def hide(text: str) -> str:
        if home != "/":
            text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?=[/\s,;:)]|$)", "~", text)
        return re.sub(rf"(?<=/){re.escape(user)}(?=[/\s,;:)]|$)", "USER", text) if user else text

    return replace(result, value=hide(result.value), advice=hide(result.advice))
