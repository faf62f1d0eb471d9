"""Patch tree in a zip, read in place without unpacking it.

``zipfile`` reads the directory of the zip once. Its objects take 0.6 kB an entry, 350 MB for the
555,048 files of the Kaggle archive, so only names and numbers are kept. A ``ZipFile`` cannot be
shared by threads, so members are read by position.
"""

import itertools
import os
import stat
import struct
import zipfile
import zlib
from array import array
from bisect import bisect_left
from pathlib import Path

from wsi_idc.core.errors import DataError, first_line
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

# PNG is compressed already, so a zip of patches is about as large as the patches.
MAX_RATIO = 100
MAX_ENTRIES = 5_000_000
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_COLUMNS = ("CRC", "compress_size", "file_size", "header_offset", "compress_type")
# Errors that zipfile raises on a damaged directory.
_DAMAGED = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error)


class ZipStore(PatchStore):
    """Patch tree in a zip.

    Raises:
        DataError: The zip is damaged or unsafe: a name leads out of a folder, or files overlap,
            are too many, or claim a size that their bytes cannot hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = FileList()
        try:
            members = self._read_directory()
        except _DAMAGED as error:
            raise DataError(
                f"{path}: not a complete zip ({first_line(error)}); get it again"
            ) from None
        self._files.paths = [member.filename for member in members]
        self._columns = [array("Q", (getattr(m, name) for m in members)) for name in _COLUMNS]
        self._fd = os.open(path, os.O_RDONLY)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def list_files(self) -> FileList:
        """List the files."""
        return self._files

    def size(self, path: str) -> int:
        """Return the size of a file in bytes, as the directory of the zip has it."""
        return self._entry(path)[2]

    def stat_key(self, path: str) -> str:
        """Return size and checksum of a file, as the directory of the zip has them."""
        crc, _, size, _, _ = self._entry(path)
        return f"{size}\0crc {crc:08x}"

    def read(self, path: str) -> tuple[bytes, str]:
        """Read a file, at most its first ``MAX_FILE_BYTES + 1`` bytes; see ``PatchStore.read``."""
        crc, compressed_size, size, offset, method = self._entry(path)
        try:
            header = os.pread(self._fd, _LOCAL_HEADER.size, offset)
            if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
                raise UnreadablePatchError("damaged archive: no file where there should be one")
            start = offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header)[-2:])
            data = os.pread(self._fd, min(compressed_size, 2 * MAX_FILE_BYTES), start)
        except OSError as error:
            raise UnreadablePatchError(f"cannot be read: {error.strerror}") from None
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-15).decompress(data, min(size, MAX_FILE_BYTES) + 1)
            except zlib.error:
                raise UnreadablePatchError("damaged archive: cannot be inflated") from None
        if size > MAX_FILE_BYTES:
            return data[: MAX_FILE_BYTES + 1], self.stat_key(path)
        if len(data) > size:
            raise UnreadablePatchError(f"holds more than the {size} bytes that it claims")
        if len(data) < size or zlib.crc32(data) != crc:
            raise UnreadablePatchError("damaged archive: not the bytes that were packed")
        return data, self.stat_key(path)

    def _entry(self, path: str) -> tuple[int, ...]:
        row = bisect_left(self._files.paths, path)
        return tuple(column[row] for column in self._columns)

    def _read_directory(self) -> list[zipfile.ZipInfo]:
        """Return the members to read, sorted by name; collect the others in the file list."""
        with zipfile.ZipFile(self.path) as archive:
            entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise ValueError(f"it has {len(entries)} entries, more than {MAX_ENTRIES}")
        archive_size = self.path.stat().st_size
        members = []
        for entry in entries:
            self._check_name(entry.orig_filename)
            name = entry.filename
            if entry.is_dir():
                continue
            if not is_patch_name(name.rpartition("/")[2]):
                self._files.num_other += 1
            elif reason := _unreadable_reason(entry):
                self._files.unreadable.append(FileIssue(name, UNREADABLE, reason))
            else:
                if not 0 <= entry.header_offset <= archive_size - entry.compress_size:
                    raise ValueError(f"{name!r} is outside the file")
                if entry.file_size > max(MAX_FILE_BYTES, MAX_RATIO * entry.compress_size):
                    self._refuse_bomb(f"{name!r} claims {entry.file_size} bytes")
                members.append(entry)
        if sum(member.compress_size for member in members) > archive_size:
            self._refuse_bomb("its files overlap")
        total_size = sum(member.file_size for member in members)
        if total_size > MAX_RATIO * archive_size:
            self._refuse_bomb(f"its {archive_size} bytes claim to hold {total_size}")
        members.sort(key=lambda member: member.filename)
        unique = []
        for name, group in itertools.groupby(members, key=lambda member: member.filename):
            first, *repeated = group
            unique.append(first)
            reason = "the archive has several files of this name; the first is kept"
            self._files.unreadable += [FileIssue(name, "duplicate name", reason) for _ in repeated]
        return unique

    def _check_name(self, name: str) -> None:
        parts = name.removesuffix("/").split("/")
        is_inside = not {"", ".", ".."} & set(parts) and parts[0][1:2] != ":"
        if not is_inside or "\\" in name or "\0" in name:
            raise DataError(
                f"{self.path}: refused, it holds a file named {name!r}, which is no plain path "
                "below a folder; get the archive from a source you trust, or zip the files again"
            )

    def _refuse_bomb(self, reason: str) -> None:
        raise DataError(f"{self.path}: refused, it looks like a decompression bomb: {reason}")


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip by its first bytes."""
    return starts_with(path, b"PK\3\4", b"PK\5\6")


def _unreadable_reason(entry: zipfile.ZipInfo) -> str:
    """Return why a member cannot be read, empty if it can."""
    mode = entry.external_attr >> 16
    if entry.flag_bits & 1:
        return "encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {entry.compress_type} is not supported, only store and deflate"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "a link" if stat.S_ISLNK(mode) else "not a regular file"
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        return "damaged archive: two sizes for one file"
    return ""
