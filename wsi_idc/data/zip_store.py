"""Patches in a zip, read where they lie: nothing is unpacked.

The standard library's ``zipfile`` keeps 0.6 kB an entry, 350 MB for the 555,048 of the Kaggle
archive, and its handle is not for several threads; so the table of contents is read here (PKWARE
APPNOTE 6.3.10, sections 4.3 and 4.5), one entry after the other, and members by position.
"""

import os
import stat
import struct
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from wsi_idc.core.errors import DataError
from wsi_idc.core.files import starts_with
from wsi_idc.data.patch_store import (
    MAX_FILE_BYTES,
    UNREADABLE,
    FileIssue,
    FileList,
    PatchStore,
    UnreadablePatchError,
    is_patch_name,
)

# PNG is compressed already, so a zip of patches is about as large as they are.
MAX_RATIO = 100
MAX_ENTRIES = 5_000_000
_STORED, _DEFLATED = 0, 8
_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_IN_EXTRA = 0xFFFFFFFF  # the value did not fit its 32 bits and stands in the zip64 field


class _Entry(NamedTuple):
    """One entry of the table of contents."""

    name: str
    flags: int
    method: int
    mode: int
    crc: int
    packed: int  # bytes in the archive
    size: int  # bytes it claims to hold
    offset: int


class ZipStore(PatchStore):
    """A patch tree in a zip.

    Raises:
        DataError: The file is no whole zip, or one made to do harm: names that lead out of a
            folder, entries that inflate beyond reason, that overlap or are too many.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listing = FileList()
        columns = ("crc", "packed", "size", "offset", "method")
        self._columns = {name: array("Q") for name in columns}
        self._fd = os.open(path, os.O_RDONLY)
        try:
            with path.open("rb") as file:
                self._read_contents(file)
        except (struct.error, ValueError, OverflowError) as error:
            self.close()
            reason = str(error) if isinstance(error, ValueError) else "it is cut short"
            raise DataError(f"{path}: not a whole zip ({reason}); get it anew") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def listing(self) -> FileList:
        """List the files."""
        return self._listing

    def size(self, path: str) -> int:
        """Return the size that the archive claims for a file, in bytes."""
        return self._columns["size"][self._at(path)]

    def state(self, path: str) -> str:
        """Return size and checksum of a file, as the archive has them."""
        at = self._at(path)
        return _state(self._columns["size"][at], self._columns["crc"][at])

    def read(self, path: str) -> tuple[bytes, str]:
        """Return a file's bytes, and its ``state``.

        They are no more than the first ``MAX_FILE_BYTES + 1``.

        Raises:
            UnreadablePatchError: The archive is damaged there.
        """
        at = self._at(path)
        crc, packed, size, offset, method = (column[at] for column in self._columns.values())
        try:
            head = os.pread(self._fd, _LOCAL.size, offset)
            if len(head) < _LOCAL.size or head[:4] != b"PK\3\4":
                raise UnreadablePatchError("damaged archive: no file where there should be one")
            start = offset + _LOCAL.size + sum(_LOCAL.unpack(head)[-2:])
            data = os.pread(self._fd, min(packed, 2 * MAX_FILE_BYTES), start)
        except OSError as error:
            raise UnreadablePatchError(f"cannot be read: {error.strerror}") from None
        if method == _DEFLATED:
            try:
                data = zlib.decompressobj(-15).decompress(data, min(size, MAX_FILE_BYTES) + 1)
            except zlib.error:
                raise UnreadablePatchError("damaged archive: cannot be inflated") from None
        if size > MAX_FILE_BYTES:
            return data[: MAX_FILE_BYTES + 1], _state(size, crc)
        if len(data) > size:
            raise UnreadablePatchError(f"holds more than the {size} bytes that it claims")
        if len(data) < size or zlib.crc32(data) != crc:
            raise UnreadablePatchError("damaged archive: not the bytes that were packed")
        return data, _state(size, crc)

    def _at(self, path: str) -> int:
        return bisect_left(self._listing.paths, path)

    def _read_contents(self, file: BinaryIO) -> None:
        """Take what can be read into the listing and the columns, in the order of the names."""
        listing, columns = self._listing, self._columns
        num_bytes = file.seek(0, os.SEEK_END)
        for entry in _entries(file):
            _check_name(entry.name, archive=self.path)
            if entry.name.endswith("/"):
                continue
            if not is_patch_name(entry.name.rpartition("/")[2]):
                listing.num_other += 1
            elif why := _why_not(entry):
                listing.unreadable.append(FileIssue(entry.name, UNREADABLE, why))
            else:
                if entry.offset + entry.packed > num_bytes:
                    raise ValueError(f"{entry.name!r} lies beyond its end")
                if entry.size > max(MAX_FILE_BYTES, MAX_RATIO * entry.packed):
                    self._refuse_bomb(f"{entry.name!r} claims {entry.size} bytes")
                listing.paths.append(entry.name)
                for name, column in columns.items():
                    column.append(getattr(entry, name))
        if sum(columns["packed"]) > num_bytes:
            self._refuse_bomb("its files overlap")
        if sum(columns["size"]) > MAX_RATIO * num_bytes:
            self._refuse_bomb(f"its {num_bytes} bytes claim to hold {sum(columns['size'])}")
        self._sort()

    def _sort(self) -> None:
        """Sort by name; of several entries of one name, keep the first."""
        names = self._listing.paths
        order = array("Q", sorted(range(len(names)), key=names.__getitem__))
        twice = [at for last, at in pairwise(order) if names[at] == names[last]]
        if twice:
            why = "the archive has several files of this name; the first is kept"
            self._listing.unreadable += [
                FileIssue(names[at], "duplicate name", why) for at in twice
            ]
            out = set(twice)
            order = array("Q", (at for at in order if at not in out))
        self._listing.paths = [names[at] for at in order]
        for name, column in self._columns.items():
            self._columns[name] = array("Q", (column[at] for at in order))

    def _refuse_bomb(self, why: str) -> None:
        raise DataError(f"{self.path}: refused, it looks like a decompression bomb: {why}")


def _state(size: int, crc: int) -> str:
    return f"{size}\0crc {crc:08x}"


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip by its first bytes."""
    return starts_with(path, b"PK\3\4", b"PK\5\6")


def _check_name(name: str, *, archive: Path) -> None:
    parts = name.removesuffix("/").split("/")
    inside = not {"", ".", ".."} & set(parts) and parts[0][1:2] != ":"
    if not inside or "\\" in name or "\0" in name:
        raise DataError(
            f"{archive}: refused, it holds a file named {name!r}, which is no plain path below a "
            "folder; get the archive from a source you trust, or pack it anew"
        )


def _why_not(entry: _Entry) -> str:
    """Return why a member cannot be read, empty if it can."""
    if entry.flags & 1:
        return "encrypted"
    if entry.method not in (_STORED, _DEFLATED):
        return f"compression method {entry.method} is not supported, only store and deflate"
    if stat.S_IFMT(entry.mode) not in (0, stat.S_IFREG):
        return "a link" if stat.S_ISLNK(entry.mode) else "not a regular file"
    if entry.method == _STORED and entry.packed != entry.size:
        return "damaged archive: two sizes for one file"
    return ""


def _entries(file: BinaryIO) -> Iterator[_Entry]:
    """Read the table of contents, one entry at a time."""
    count, size, offset, shift = _find_contents(file)
    if count > MAX_ENTRIES:
        raise ValueError(f"it claims {count} entries, more than {MAX_ENTRIES}")
    file.seek(offset + shift)
    for _ in range(count):
        fixed = _ENTRY.unpack(file.read(_ENTRY.size))
        signature, _, _, flags, method, _, _, crc, packed, full, *rest = fixed
        name_length, extra_length, comment_length, _, _, attributes, at = rest
        size -= _ENTRY.size + name_length + extra_length + comment_length
        if signature != b"PK\1\2" or size < 0:
            raise ValueError("its table of contents is damaged")
        name = file.read(name_length)
        extra = file.read(extra_length)
        file.seek(comment_length, os.SEEK_CUR)
        full, packed, at = _large_values(extra, full, packed, at)
        yield _Entry(
            name=name.decode("utf-8" if flags & 0x800 else "cp437", "surrogateescape"),
            flags=flags,
            method=method,
            mode=attributes >> 16,
            crc=crc,
            packed=packed,
            size=full,
            offset=at + shift,
        )


def _find_contents(file: BinaryIO) -> tuple[int, int, int, int]:
    """Return count, bytes and offset of the entries, and by how much all offsets are too small."""
    end = file.seek(0, os.SEEK_END)
    start = max(0, end - _END.size - 0xFFFF)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise ValueError("its end is missing")
    _, disk, _, _, count, size, offset, _ = _END.unpack_from(tail, at)
    before = start + at
    file.seek(max(0, before - _LOCATOR.size))
    locator = file.read(_LOCATOR.size)
    if locator[:4] == b"PK\6\7":
        file.seek(_LOCATOR.unpack(locator)[2])
        found = _END_64.unpack(file.read(_END_64.size))
        if found[0] != b"PK\6\6":
            raise ValueError("its zip64 end is missing")
        disk, count, size, offset = found[4], found[7], found[8], found[9]
        before -= _LOCATOR.size + _END_64.size
    if disk:
        raise ValueError("it is one part of several")
    # What stands before the archive in the same file is skipped.
    shift = before - size - offset
    if shift < 0:
        raise ValueError("its table of contents is cut short")
    return count, size, offset, shift


def _large_values(extra: bytes, *values: int) -> tuple[int, int, int]:
    """Return size, packed size and offset, from the zip64 field where they did not fit."""
    found = list(values)
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = [index for index, value in enumerate(found) if value == _IN_EXTRA]
            for place, index in enumerate(wide):
                (found[index],) = struct.unpack_from("<Q", extra, at + 4 + 8 * place)
        at += 4 + length
    size, packed, offset = found
    return size, packed, offset
