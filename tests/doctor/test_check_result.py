import pwd
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from wsi_idc.doctor.check_result import NOTE, PROBLEM, CheckResult, Probe, without_names


def test_a_probe_gives_what_it_finds():
    rows = [CheckResult("a", "1"), CheckResult("b", "2", PROBLEM, "mend it")]
    assert Probe("both", lambda: iter(rows)).findings() == rows


def test_a_probe_that_raises_becomes_a_row():
    def look() -> Iterator[CheckResult]:
        yield CheckResult("a", "1")
        raise PermissionError(13, "Permission denied", "/secret")

    assert Probe("both", look).findings() == [
        CheckResult("a", "1"),
        CheckResult("both", "could not be found: [Errno 13] Permission denied: '/secret'", NOTE),
    ]
    assert Probe("x", lambda: 1 / 0).findings()[0].value == "could not be found: division by zero"

    def silent() -> Iterator[CheckResult]:
        raise KeyError

    assert Probe("x", silent).findings()[0].value == "could not be found: KeyError"


def test_a_package_that_cannot_be_imported_is_a_problem():
    def look() -> Iterator[CheckResult]:
        raise ImportError("libcudart.so.13: cannot open shared object file")

    (row,) = Probe("torch", look).findings()
    assert (row.value, row.state) == (
        "could not be found: libcudart.so.13: cannot open shared object file",
        PROBLEM,
    )
    assert row.advice == "install the program anew, in an environment of its own"


def test_a_probe_that_hangs_is_left_behind():
    end = threading.Event()

    def look() -> Iterator[CheckResult]:
        yield CheckResult("a", "1")
        end.wait(60)

    started = time.monotonic()
    rows = Probe("disk", look, seconds=0.2).findings()
    end.set()
    assert time.monotonic() - started < 20
    assert [(row.name, row.value, row.state) for row in rows] == [
        ("a", "1", "ok"),
        ("disk", "could not be found: no answer in 0.2 s", PROBLEM),
    ]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/home/ada/x.h5 (ext4)", "~/x.h5 (ext4)"),
        ("none in /home/ada", "none in ~"),
        ("/home/adam/x", "/home/adam/x"),
        ("/scratch/ada/runs, /data/ada", "/scratch/USER/runs, /data/USER"),
        ("/scratch/ada.h5 of ada", "/scratch/ada.h5 of ada"),
        ("/mnt/home/ada/x", "/mnt/home/USER/x"),
    ],
)
def test_neither_home_nor_user_is_named(monkeypatch: pytest.MonkeyPatch, said: str, shown: str):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="ada"))
    found = without_names(CheckResult("x", said, PROBLEM, f"see {said}"))
    assert found == CheckResult("x", shown, PROBLEM, f"see {shown}")


def test_a_user_that_the_system_does_not_know(monkeypatch: pytest.MonkeyPatch):
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setenv("HOME", "/")
    assert without_names(CheckResult("x", "/data/x")) == CheckResult("x", "/data/x")
