import pwd
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from wsi_idc.doctor.doctor import NOTE, PROBLEM, CheckResult, hide_names, run_check

FIRST = CheckResult("a", "1")
INSTALL = "install the program again, in a new virtual environment"
NO_CUDA = "libcudart.so.13: cannot open shared object file"


@pytest.mark.parametrize(
    ("error", "reason", "state", "advice"),
    [
        (PermissionError(13, "no", "/secret"), "no: /secret", NOTE, ""),
        (ZeroDivisionError("division by zero"), "division by zero", NOTE, ""),
        (KeyError(), "KeyError", NOTE, ""),
        (ImportError(NO_CUDA), NO_CUDA, PROBLEM, INSTALL),
    ],
)
def test_an_error_becomes_the_last_row(error: Exception, reason: str, state: str, advice: str):
    second = CheckResult("b", "2", PROBLEM, "do it")

    def check() -> Iterator[CheckResult]:
        yield from (FIRST, second)
        raise error

    assert run_check("x", lambda: [FIRST, second]) == [FIRST, second]
    failed = CheckResult("x", f"the check failed: {reason}", state, advice)
    assert run_check("x", check) == [FIRST, second, failed]


def test_a_hanging_check_is_abandoned():
    end = threading.Event()

    def check() -> Iterator[CheckResult]:
        yield FIRST
        end.wait(60)

    started = time.monotonic()
    first, last = run_check("disk", check, seconds=0.2)
    end.set()
    assert time.monotonic() - started < 20
    assert first == FIRST
    assert (last.name, last.state) == ("disk", PROBLEM)
    assert last.value == "the check failed: no answer in 0.2 s"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("/home/ada/x.h5 (ext4)", "~/x.h5 (ext4)"),
        ("none in /home/ada", "none in ~"),
        ("/home/adam/x", "/home/adam/x"),
        ("/scratch/ada/runs, /data/ada", "/scratch/USER/runs, /data/USER"),
        ("/scratch/ada.h5 of ada", "/scratch/ada.h5 of ada"),
        ("/mnt/home/ada/x", "/mnt/home/USER/x"),
    ],
)
def test_home_and_user_are_hidden(monkeypatch: pytest.MonkeyPatch, text: str, hidden: str):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="ada"))
    result = hide_names(CheckResult("x", text, PROBLEM, f"see {text}"))
    assert result == CheckResult("x", hidden, PROBLEM, f"see {hidden}")


def test_an_unknown_user_is_no_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    monkeypatch.setenv("HOME", "/")
    assert hide_names(CheckResult("x", "/data/x")) == CheckResult("x", "/data/x")
