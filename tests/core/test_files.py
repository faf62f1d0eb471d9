import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from wsi_idc.core.errors import BusyError, DataError, WsiIdcError
from wsi_idc.core.files import (
    atomic_write,
    is_being_written,
    parse_json,
    remove_partial,
    resumable_path,
    safe_filename,
    sha256,
    temporary_path,
    write_json,
    write_text,
)
from wsi_idc.core.locks import locked

HOLDER = """
import sys
from pathlib import Path
from wsi_idc.core.files import atomic_write
with atomic_write(Path(sys.argv[1])) as partial:
    partial.write_text("theirs")
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold(path: Path) -> subprocess.Popen:
    """Start another process that is writing ``path`` until it gets a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replacing_makes_folders_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "result.txt"
    with atomic_write(path) as partial:
        assert partial.name == ".result.txt.partial"
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["result.txt"]


@pytest.mark.parametrize("trouble", [RuntimeError, KeyboardInterrupt, OSError])
def test_failure_inside_replacing_keeps_the_old_file(tmp_path, trouble):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(trouble), atomic_write(path) as partial:
        partial.write_text("half")
        raise trouble
    assert path.read_text() == "old"
    assert names(tmp_path) == ["result.txt"]


def test_leftover_of_a_killed_process_is_written_over(tmp_path):
    leftover = tmp_path / ".result.txt.partial"
    leftover.write_text("a long text from a process that was killed")
    write_text(tmp_path / "result.txt", "new")
    assert (tmp_path / "result.txt").read_text() == "new"
    assert names(tmp_path) == ["result.txt"]


def test_another_process_at_work_is_busy_and_is_not_disturbed(tmp_path):
    path = tmp_path / "result.txt"
    with hold(path) as other:
        with pytest.raises(BusyError, match=r"result\.txt: another process is writing it"):
            write_text(path, "ours")
        assert (tmp_path / ".result.txt.partial").read_text() == "theirs"
        other.communicate("go on\n")
    assert other.returncode == 0
    assert path.read_text() == "theirs"
    assert names(tmp_path) == ["result.txt"]


def test_lock_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / "result.txt"
    with hold(path) as other:
        other.kill()
    write_text(path, "ours")
    assert path.read_text() == "ours"
    assert names(tmp_path) == ["result.txt"]


def test_partial_that_another_process_made_after_the_rename_stays(tmp_path):
    path = tmp_path / "result.txt"
    with temporary_path(path) as partial:
        partial.replace(path)
        # Now the name is free, and whoever comes next may take it.
        partial.write_text("theirs")
    assert partial.read_text() == "theirs"


def test_lock_is_held_once_and_given_back_also_on_failure(tmp_path):
    lock = tmp_path / ".lock"
    for _ in range(2):
        with pytest.raises(RuntimeError), locked(lock, what=tmp_path):
            with pytest.raises(BusyError), locked(lock, what=tmp_path):
                pass
            raise RuntimeError


def test_whether_a_file_is_in_work_is_told_without_a_trace(tmp_path):
    path = tmp_path / "result.txt"
    assert not is_being_written(path)
    with temporary_path(path):
        assert is_being_written(path)
    assert not is_being_written(path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["file/result.txt", "/proc/result.txt", "x" * 250])
def test_unwritable_place_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WsiIdcError, match=r"cannot be written there \(.+\); choose") as caught:
        write_text(tmp_path / place, "text")
    assert len(str(caught.value).splitlines()) == 1


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    path = tmp_path / "result.bin"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with (
            pytest.raises(WsiIdcError, match="file too large; free some space"),
            atomic_write(path) as p,
        ):
            p.write_bytes(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_json_is_indented_and_takes_any_file_name(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"name": "Müller", "odd": "\udcff"})
    assert path.read_bytes() == '{\n  "name": "Müller",\n  "odd": "\\udcff"\n}\n'.encode()


def test_json_is_read_strictly():
    assert parse_json('{"a": [1, 0.5, null]}') == {"a": [1, 0.5, None]}
    for text, reason in [
        ("[NaN]", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[1e400]", "1e400 is too large a number"),
        ("[" * 100_000, "nested too deep"),
        ("{", "Expecting"),
    ]:
        with pytest.raises(ValueError, match=reason):
            parse_json(text)


def test_sha256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path).startswith("ba7816bf8f01cfea414140de5dae2223")


@pytest.mark.parametrize("name", ["10253", "a b", "Ä-1", "x" * 128, "a.b", "-rf"])
def test_plain_names(name):
    assert safe_filename(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".hidden", "../x", "a/b", "/etc", "a\\b", "a\nb", "a\0b", "a\x1b[2J"),
        *("x" * 129, "ä" * 65, "\u202egnp", "\udcff", "\ud800", "a\u2028b"),
    ],
)
def test_names_that_would_leave_their_folder_or_deceive(name):
    with pytest.raises(DataError, match="cannot be a patient id") as caught:
        safe_filename(name)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize("folders_too", [True, False])
def test_without_locks_each_process_has_a_temporary_name_of_its_own(
    tmp_path, monkeypatch, number, folders_too
):
    flock = fcntl.flock

    def refuse(fd: int, operation: int) -> None:
        # NFS and Lustre lock a folder within the machine, and may still refuse files.
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
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_resumable_is_kept_when_stopped_and_only_then(tmp_path):
    path, partial = tmp_path / "x", tmp_path / ".x.partial"
    with pytest.raises(KeyboardInterrupt), resumable_path(path) as given:
        given.write_text("half")
        raise KeyboardInterrupt
    assert partial.read_text() == "half"
    with resumable_path(path) as given:
        assert given.read_text() == "half"
    assert not partial.exists()
    with pytest.raises(ZeroDivisionError), resumable_path(path) as given:
        given.write_text("half")
        raise ZeroDivisionError
    assert not partial.exists()


def test_discard_removes_what_resumable_kept_and_nobody_uses(tmp_path):
    path, partial = tmp_path / "x", tmp_path / ".x.partial"
    remove_partial(path)
    with resumable_path(path):
        remove_partial(path)
        assert partial.exists()
    partial.write_text("half")
    remove_partial(path)
    assert names(tmp_path) == []
