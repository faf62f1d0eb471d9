import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.one_trial import ONE_TRIAL
from wsi_idc.core.errors import BusyError, StoppedError, WsiIdcError
from wsi_idc.core.locks import can_lock, is_held, locked, retry_while_busy, wait_for_lock
from wsi_idc.data.pack import Pack
from wsi_idc.runtime.signals import StopRequest, raise_if_stopped

# A library between the program and the system: no file can be locked, as on some network disks.
SHIM = """
#include <errno.h>
int flock(int fd, int operation) { errno = ENOLCK; return -1; }
"""
COMMANDS = """
import json, sys
from wsi_idc.cli.main import group, run
for words in json.loads(sys.argv[1]):
    if code := run(lambda: group.main(words, prog_name="wsi-idc", standalone_mode=False)):
        sys.exit(code)
"""
LOCKED_HDF5 = "import h5py, sys; h5py.File(sys.argv[1], locking=True)"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "below" / ".lock"


def test_lock_is_held_once_and_released_also_on_failure(lock: Path):
    assert not is_held(lock)
    for _ in range(2):
        with pytest.raises(RuntimeError), locked(lock, what=lock):
            assert is_held(lock)
            with pytest.raises(BusyError), locked(lock, what=lock):
                pass
            raise RuntimeError
    assert not is_held(lock)


def test_lock_that_was_renamed_meanwhile_is_taken_again(lock: Path, monkeypatch):
    flock, renamed = fcntl.flock, []

    def rename_first(fd: int, operation: int) -> None:
        if not renamed:
            renamed.append(lock.rename(lock.with_name("result")))
        flock(fd, operation)

    monkeypatch.setattr("fcntl.flock", rename_first)
    with locked(lock, what=lock) as fd:
        assert os.path.samestat(os.fstat(fd), lock.stat())


def test_waiting_ends_when_the_lock_is_released(lock: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="wsi_idc")
    pauses, holder = [], contextlib.ExitStack()
    holder.enter_context(locked(lock, what=lock))

    def on_wait() -> None:
        pauses.append(len(caplog.messages))
        if len(pauses) == 3:
            holder.close()

    with wait_for_lock(lock, what=lock, log_as="the other one", on_wait=on_wait):
        assert is_held(lock)
    assert not is_held(lock)
    assert pauses == [0, 1, 1]
    assert caplog.messages == ["waiting for the other one"]


def test_waiting_ends_after_the_timeout_or_a_stop(lock: Path):
    stop = StopRequest()
    stop.signal_name = "SIGTERM"
    with locked(lock, what=lock):
        with pytest.raises(BusyError), wait_for_lock(lock, what=lock, timeout=0):
            pass
        with (
            pytest.raises(StoppedError, match=r"^Stopped by SIGTERM; run the same command again"),
            wait_for_lock(lock, what=lock, on_wait=lambda: raise_if_stopped(stop)),
        ):
            pass


def test_retry_returns_the_result_and_passes_other_errors_on(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="wsi_idc")
    action = Mock(side_effect=[BusyError("busy"), 7, WsiIdcError("other")])
    assert retry_while_busy(action, log_as="it", log_after=60) == 7
    with pytest.raises(WsiIdcError, match="other"):
        retry_while_busy(action)
    assert caplog.messages == []


def test_answer_whether_a_folder_has_locks_is_cached(tmp_path: Path, monkeypatch):
    (tmp_path / "a").mkdir()
    assert can_lock(tmp_path / "a" / "missing")
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "no locks")))
    assert can_lock(tmp_path / "a")
    assert not can_lock(tmp_path)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that makes flock fail, to be loaded before all others."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler for a library that makes locks fail")
    library = tmp_path_factory.mktemp("shim") / "flock.so"
    command = [compiler, "-shared", "-fPIC", "-o", library, "-x", "c", "-"]
    subprocess.run(command, input=SHIM, text=True, check=True)
    return library


def run_without_locks(shim: Path, code: str, argument: object, *, cwd: Path) -> tuple[int, str]:
    """Run Python where every lock fails; return its exit code and output."""
    command = [sys.executable, "-c", code, str(argument)]
    env = os.environ | {"LD_PRELOAD": str(shim)}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


def test_hdf5_cannot_open_a_file_with_a_lock_where_locks_fail(shim, cohort, tmp_path):
    code, output = run_without_locks(shim, LOCKED_HDF5, cohort.path, cwd=tmp_path)
    assert code == 1
    assert "unable to lock file" in output


@pytest.mark.slow
def test_all_commands_work_where_locks_fail(
    shim: Path, cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WSI_IDC_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "data").mkdir()
    shutil.copy(cohort.path, tmp_path / "data")
    (tmp_path / "job.toml").write_text(ONE_TRIAL)
    train = "train --epochs 1 --batch-size 32 --split ratio:50/25/25"
    commands = [line.split() for line in (train, "search job.toml", "map --all", "report")]
    code, output = run_without_locks(shim, COMMANDS, json.dumps(commands), cwd=tmp_path)
    assert code == 0, output
    assert "WARNING" not in output and "is read where it is" not in output
    assert len(list((tmp_path / "maps").glob("S*.h5"))) == 6
    assert (tmp_path / "runs/one/best.toml").exists()
    (copy,) = (tmp_path / "scratch").glob("*/*")
    assert copy.suffix == ".h5"
    assert list(tmp_path.rglob("*.partial")) == []
