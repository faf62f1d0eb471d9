import contextlib
import errno
import fcntl
import json
import logging
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.one_trial import ONE_TRIAL
from wsi_idc.core.errors import BusyError, DataError, StoppedError, WorkerError, WsiIdcError
from wsi_idc.core.files import (
    atomic_write,
    ensure_writable,
    is_being_written,
    parse_json,
    remove_partial,
    safe_filename,
    sha256,
    starts_with,
    temporary_path,
    write_json,
    write_text,
)
from wsi_idc.core.locks import can_lock, is_held, locked, retry_while_busy, wait_for_lock
from wsi_idc.data.pack import Pack
from wsi_idc.runtime.signals import StopRequest, raise_if_stopped

# Writes a file until it gets a line.
WRITER = """
import sys
from pathlib import Path
from wsi_idc.core.files import atomic_write
with atomic_write(Path(sys.argv[1])) as partial:
    partial.write_text("theirs")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start_writer(path: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writing\n"
    return process


def test_atomic_write_makes_folders_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "result.txt"
    with atomic_write(path) as partial:
        assert partial.name == ".result.txt.partial"
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["result.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_failed_write_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["result.txt"]
    # A partial file that another process made after the rename stays.
    with temporary_path(path) as partial:
        partial.replace(path)
        partial.write_text("theirs")
    assert partial.read_text() == "theirs"


def test_another_writer_is_not_disturbed_and_a_killed_one_is_forgotten(tmp_path):
    path = tmp_path / "result.txt"
    with start_writer(path) as other:
        with pytest.raises(BusyError, match=r"result\.txt: another process is writing it"):
            write_text(path, "ours")
        assert (tmp_path / ".result.txt.partial").read_text() == "theirs"
        other.communicate("go on\n")
    assert other.returncode == 0
    assert path.read_text() == "theirs"
    with start_writer(path) as other:
        other.kill()
    assert (tmp_path / ".result.txt.partial").exists()
    write_text(path, "ours")
    assert path.read_text() == "ours"
    assert names(tmp_path) == ["result.txt"]


@pytest.mark.parametrize("place", ["file/result.txt", "/proc/result.txt", "x" * 250])
def test_unwritable_place_is_a_one_line_error(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WsiIdcError, match=r"cannot be written there \(.+\); choose") as error:
        write_text(tmp_path / place, "text")
    assert len(str(error.value).splitlines()) == 1


def test_full_disk_is_a_one_line_error_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with (
            pytest.raises(WsiIdcError, match="file too large; free some space"),
            atomic_write(tmp_path / "result.bin") as partial,
        ):
            partial.write_bytes(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize("folders_too", [True, False])
def test_without_locks_each_process_has_its_own_temporary_name(
    tmp_path, monkeypatch, number, folders_too
):
    flock = fcntl.flock

    def refuse(fd: int, operation: int) -> None:
        # NFS and Lustre may lock folders within the machine but refuse files.
        if stat.S_ISDIR(os.fstat(fd).st_mode) and not folders_too:
            return flock(fd, operation)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with atomic_write(tmp_path / "a.txt") as first:
        monkeypatch.setattr("os.getpid", lambda: 12345)
        with atomic_write(tmp_path / "a.txt") as second:
            assert first != second
            first.write_text("first")
            second.write_text("second")
        assert (tmp_path / "a.txt").read_text() == "second"
    assert (tmp_path / "a.txt").read_text() == "first"
    assert names(tmp_path) == ["a.txt"]


def test_resumable_file_is_kept_only_after_a_stop(tmp_path):
    path, partial = tmp_path / "x", tmp_path / ".x.partial"
    before = ""
    for error, kept in ((KeyboardInterrupt, True), (WorkerError, True), (ZeroDivisionError, False)):
        with pytest.raises(error), temporary_path(path, resumable=True) as given:
            assert given.read_text() == before
            given.write_text(before := f"half {error}")
            raise error
        assert partial.exists() == kept


def test_partial_file_in_use_is_seen_and_not_removed(tmp_path):
    path, partial = tmp_path / "x", tmp_path / ".x.partial"
    remove_partial(path)
    assert not is_being_written(path)
    with temporary_path(path):
        remove_partial(path)
        assert is_being_written(path)
        assert partial.exists()
    assert not is_being_written(path)
    partial.write_text("half")
    remove_partial(path)
    assert names(tmp_path) == []


def test_json_is_indented_and_takes_any_file_name(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Müller", "odd": "\udcff"})
    expected = '{\n  "name": "Müller",\n  "odd": "\\udcff"\n}\n'
    assert (tmp_path / "a.json").read_bytes() == expected.encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(("[NaN]", "NaN is not JSON"), ("[-Infinity]", "-Infinity is not JSON")),
        *(("[1e400]", "1e400 is too large a number"), ("{", "Expecting")),
        ("[" * 100_000, "nested too deep"),
    ],
    ids=lambda text: text[:10],
)
def test_json_is_read_strictly(text, message):
    assert parse_json('{"a": [1, 0.5, null]}') == {"a": [1, 0.5, None]}
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_content_of_files(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path).startswith("ba7816bf8f01cfea414140de5dae2223")
    assert starts_with(path, b"x", b"ab") and starts_with(path, b"abc")
    assert not any(starts_with(other, b"abcd") for other in (path, tmp_path, tmp_path / "missing"))


def test_output_folder_is_checked_before_the_work(tmp_path):
    files = {"writes": ("table.csv", "page.html"), "marks": ("table.csv",)}
    ensure_writable(tmp_path / "new" / "folder", **files)
    (tmp_path / "page.html").write_text("of the user")
    with pytest.raises(WsiIdcError, match=r"page\.html exists and was not written by this command"):
        ensure_writable(tmp_path, **files)
    (tmp_path / "table.csv").write_text("of an earlier run")
    ensure_writable(tmp_path, **files)
    with pytest.raises(WsiIdcError, match=r"table\.csv is a file; give a folder as --out"):
        ensure_writable(tmp_path / "table.csv" / "below", **files)


def test_patient_ids_that_leave_the_folder_or_deceive_are_refused():
    for name in ("10253", "a b", "Ä-1", "x" * 128, "a.b", "-rf"):
        assert safe_filename(name) == name
    for name in (
        *("", ".", "..", ".hidden", "../x", "a/b", "/etc", "a\\b", "a\nb", "a\0b", "a\x1b[2J"),
        *("x" * 129, "ä" * 65, "\u202egnp", "\udcff", "\ud800", "a\u2028b"),
    ):
        with pytest.raises(DataError, match="cannot be a patient id") as error:
            safe_filename(name)
        assert len(str(error.value).splitlines()) == 1


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
    pauses = []
    with contextlib.ExitStack() as holder:
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
    folder = tmp_path_factory.mktemp("shim")
    (folder / "flock.c").write_text(SHIM)
    command = [compiler, "-shared", "-fPIC", "-o", "flock.so", "flock.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "flock.so"


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
