import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.packs import names
from wsi_idc.core.errors import BusyError, DataError, WorkerError, WsiIdcError
from wsi_idc.core.files import (
    atomic_write,
    ensure_writable,
    is_being_written,
    parse_json,
    regular_file,
    remove_partial,
    safe_filename,
    sha256,
    starts_with,
    temporary_path,
    write_json,
    write_text,
)

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


def start_writer(path: Path) -> subprocess.Popen:
    command, pipe = [sys.executable, "-c", WRITER, str(path)], subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
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
    with pytest.raises(WsiIdcError, match=r"cannot be written \(.+\); choose") as error:
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

    def refuse(file: int | BinaryIO, operation: int) -> None:
        fd = file if isinstance(file, int) else file.fileno()
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


def test_only_a_regular_file_of_limited_size_is_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    assert regular_file(path, 4) == path
    with pytest.raises(OSError, match="larger than 3e-06 MB"):
        regular_file(path, 3)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            regular_file(other)
        with pytest.raises(OSError, match="not a regular file"):
            sha256(other)
    with pytest.raises(IsADirectoryError):
        regular_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        regular_file(tmp_path / "none")


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


def test_a_name_that_the_locale_cannot_encode_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("ascii"))
    assert safe_filename("P1") == "P1"
    with pytest.raises(DataError, match=r"set LC_ALL=C\.UTF-8"):
        safe_filename("P\N{GRINNING FACE}")
