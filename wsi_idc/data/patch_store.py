"""List and read the files of a patch tree in a folder or a zip, without unpacking the zip."""

import contextlib
import os
import stat
import struct
import zipfile
import zlib
from abc import abstractmethod
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path

from wsi_idc.core.errors import DataError, WorkerError, first_line
from wsi_idc.core.files import starts_with

# Files above this size are not read as patches. A 50x50 RGB patch has at most about 10 kB.
MAX_FILE_BYTES = 4_000_000
UNREADABLE = "unreadable"  # reason of a ``FileIssue``: the content is damaged
NO_ACCESS = "no access"  # reason of a ``FileIssue``: the system denies access
CANNOT_READ = "cannot be read: "  # start of an ``UnreadablePatchError`` if access is denied
# Largest permitted ratio of unpacked to packed bytes. For PNG, which is compressed, it is about 1.
MAX_RATIO = 100
MAX_ENTRIES = 5_000_000
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_COLUMNS = ("CRC", "compress_size", "file_size", "header_offset", "compress_type")
_MAX_DIRECTORY_BYTES = 2**30
_MAX_TAIL_BYTES = 2**16
# Errors that zipfile raises if the directory of a zip is damaged.
_DAMAGED = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error)


class UnreadablePatchError(Exception):
    """A file holds no usable patch; the message is a short reason."""


@dataclass(frozen=True)
class FileIssue:
    """A problem of a file or folder; either the file is left out of the pack, or it is unusual."""

    path: str
    reason: str
    detail: str = ""


@dataclass
class FileList:
    """Files of a patch tree, before their names are parsed.

    Attributes:
        paths: Sorted paths of the PNG files in the patch tree.
        num_other: Number of other files; these files are hidden or not PNG.
        unreadable: Folders that cannot be listed, and files of a zip that cannot be read.
    """

    paths: list[str] = field(default_factory=list)
    num_other: int = 0
    unreadable: list[FileIssue] = field(default_factory=list)


class PatchStore(contextlib.AbstractContextManager["PatchStore"]):
    """Folder or zip with the files of a patch tree; any number of threads may read from it.

    Attributes:
        path: The folder or zip file.
        parent_names: Last two folder names in ``path``, such as ("10253", "1"); two empty texts for
            a zip. If ``path`` is the folder of a patient or of a class, the patient and the class
            are read from these names.
    """

    path: Path
    parent_names: tuple[str, str] = ("", "")

    @abstractmethod
    def list_files(self) -> FileList:
        """List the files of the patch tree."""

    @abstractmethod
    def stat_key(self, path: str) -> str:
        """Return a text that changes when a file changes; the text begins with the file's size."""

    def size(self, path: str) -> int:
        """Return the size of a file in bytes, or -1 if the size is unknown."""
        size = self.stat_key(path).partition("\0")[0]
        return int(size) if size.isdigit() else -1

    @abstractmethod
    def read(self, path: str) -> tuple[bytes, str]:
        """Read a file, at most its first ``MAX_FILE_BYTES + 1`` bytes.

        Returns:
            The bytes, and the ``stat_key`` that the file had before the bytes were read.

        Raises:
            UnreadablePatchError: The file cannot be read.
        """

    def __exit__(self, *_: object) -> None:
        return


def is_patch_name(name: str) -> bool:
    """Return whether the file name ``name`` (without folders) can be the name of a patch."""
    # macOS writes a hidden file "._NAME.png" beside each file. The hidden file is not a PNG.
    return name.lower().endswith(".png") and name[0] != "."


class FolderStore(PatchStore):
    """Patch tree in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Links are not resolved: the target of a link can have any name.
        root = Path(os.path.abspath(path))  # noqa: PTH100
        self.parent_names = (root.parent.name, root.name)

    def list_files(self) -> FileList:
        """List the files below the folder; follow links, and list each folder once."""
        files = FileList()
        seen: set[str] = set()
        # List one level of folders at a time, and its links last. Therefore a folder is listed with
        # its own name, not with the name of a link. A link to a parent folder is not followed.
        level = [""]
        while level:
            subfolders: list[tuple[bool, str]] = []
            for folder in level:
                target = os.path.realpath(self.path / folder)
                if target not in seen:
                    seen.add(target)
                    subfolders += self._list_folder(folder, files)
            level = [folder for _, folder in sorted(subfolders)]
        files.paths.sort()
        return files

    def _list_folder(self, folder: str, files: FileList) -> list[tuple[bool, str]]:
        """Add the files of one folder to ``files``; return its subfolders as (is_link, path)."""
        try:
            with os.scandir(self.path / folder) as scan:
                entries = [(_is_folder(entry), entry.is_symlink(), entry.name) for entry in scan]
        except OSError as error:
            if folder and isinstance(error, FileNotFoundError):
                raise _vanished(self.path / folder) from None
            files.unreadable.append(FileIssue(f"{folder}/", NO_ACCESS, str(error.strerror)))
            return []
        prefix = f"{folder}/" if folder else ""
        names = [name for is_folder, _, name in entries if not is_folder]
        patch_names = [name for name in names if is_patch_name(name)]
        files.num_other += len(names) - len(patch_names)
        files.paths += [prefix + name for name in patch_names]
        return [(is_link, prefix + name) for is_folder, is_link, name in entries if is_folder]

    def stat_key(self, path: str) -> str:
        """Return a file's size and modification time as a text, or "unreadable" on an OSError."""
        try:
            return _stat_key(os.stat(f"{self.path}/{path}"))  # noqa: PTH116 - faster than a Path
        except OSError:
            return "unreadable"

    def read(self, path: str) -> tuple[bytes, str]:
        """Read a file, at most its first ``MAX_FILE_BYTES + 1`` bytes; see ``PatchStore.read``."""
        try:
            # O_NONBLOCK: a named pipe would otherwise block until a process writes to it.
            fd = os.open(f"{self.path}/{path}", os.O_RDONLY | os.O_NONBLOCK)
            try:
                status = os.fstat(fd)
                if stat.S_ISDIR(status.st_mode):
                    raise UnreadablePatchError(f"{CANNOT_READ}Is a directory")
                if not stat.S_ISREG(status.st_mode):
                    raise UnreadablePatchError("not a regular file")
                # To allocate a buffer of MAX_FILE_BYTES would take longer than to decode a patch.
                data = os.read(fd, min(status.st_size, MAX_FILE_BYTES) + 1)
                return data, _stat_key(status)
            finally:
                os.close(fd)
        except OSError as error:
            folder = (self.path / path).parent
            if isinstance(error, FileNotFoundError) and not folder.exists():
                raise _vanished(folder) from None
            raise UnreadablePatchError(f"{CANNOT_READ}{error.strerror}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for example, a link to itself
        return False


def _vanished(folder: Path) -> WorkerError:
    return WorkerError(
        f"{folder}: the folder vanished while it was read; run again when it is back"
    )


def _stat_key(status: os.stat_result) -> str:
    return f"{status.st_size}\0{status.st_mtime_ns}"


class ZipStore(PatchStore):
    """Patch tree in a zip.

    The objects of ``zipfile`` take 350 MB for the Kaggle archive. Therefore this class keeps only
    the name and some numbers of each file. Threads cannot share a ``ZipFile``. Therefore this class
    reads a file at its byte position in the zip.

    Raises:
        DataError: The zip is damaged or unsafe. A zip is unsafe if a file name points outside the
            folder of the zip, if files overlap, if there are too many files, or if a file has an
            impossible size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = FileList()
        try:
            members = self._read_directory()
        except _DAMAGED as error:
            reason = f"not a complete zip ({first_line(error)})"
            raise DataError(f"{path}: {reason}; get it again") from None
        self._files.paths = [member.filename for member in members]
        self._columns = [array("Q", (getattr(m, name) for m in members)) for name in _COLUMNS]
        self._file = path.open("rb")

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def list_files(self) -> FileList:
        """List the files of the zip."""
        return self._files

    def stat_key(self, path: str) -> str:
        """Return the size and the CRC-32 in the zip's directory as a text; the file is not read."""
        crc, _, size, _, _ = self._entry(path)
        return f"{size}\0crc {crc:08x}"

    def read(self, path: str) -> tuple[bytes, str]:
        """Read a file, at most its first ``MAX_FILE_BYTES + 1`` bytes; see ``PatchStore.read``."""
        crc, compressed_size, size, offset, method = self._entry(path)
        try:
            header = os.pread(self._file.fileno(), _LOCAL_HEADER.size, offset)
            if not header:  # the zip was longer when it was opened
                raise UnreadablePatchError(f"{CANNOT_READ}the zip was truncated")
            if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
                raise UnreadablePatchError("damaged archive: no file at the recorded position")
            start = offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header)[-2:])
            data = os.pread(self._file.fileno(), min(compressed_size, 2 * MAX_FILE_BYTES), start)
        except OSError as error:
            raise UnreadablePatchError(f"{CANNOT_READ}{error.strerror}") from None
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-15).decompress(data, min(size, MAX_FILE_BYTES) + 1)
            except zlib.error:
                raise UnreadablePatchError("damaged archive: cannot be decompressed") from None
        if size > MAX_FILE_BYTES:
            return data[: MAX_FILE_BYTES + 1], self.stat_key(path)
        if len(data) > size:
            raise UnreadablePatchError(f"damaged archive: file exceeds its recorded {size} bytes")
        if len(data) < size or zlib.crc32(data) != crc:
            raise UnreadablePatchError("damaged archive: wrong size or checksum")
        return data, self.stat_key(path)

    def _entry(self, path: str) -> tuple[int, ...]:
        row = bisect_left(self._files.paths, path)
        return tuple(column[row] for column in self._columns)

    def _read_directory(self) -> list[zipfile.ZipInfo]:
        """Return the zip entries of patches, sorted by name; record the other files in ``_files``.

        Raises:
            ValueError: The directory of the zip is damaged.
            DataError: The zip is unsafe.
        """
        num_entries = self._count_entries()
        if num_entries > MAX_ENTRIES:
            raise ValueError(f"it has {num_entries} entries, more than {MAX_ENTRIES}")
        with zipfile.ZipFile(self.path) as archive:
            entries = archive.infolist()
        archive_size = self.path.stat().st_size
        members = []
        start = min((entry.header_offset for entry in entries), default=0)
        end = max(
            (e.header_offset + _LOCAL_HEADER.size + e.compress_size for e in entries), default=0
        )
        self._refuse_unlisted(0, start)
        self._refuse_unlisted(end, archive.start_dir)
        for entry in entries:
            name = entry.filename = self._plain_name(entry.orig_filename)
            if not name or entry.is_dir():  # "./" has no name
                continue
            if not is_patch_name(name.rpartition("/")[2]):
                self._files.num_other += 1
            elif reason := _unreadable_reason(entry):
                self._files.unreadable.append(FileIssue(name, UNREADABLE, reason))
            else:
                if not 0 <= entry.header_offset <= archive_size - entry.compress_size:
                    raise ValueError(f"the position of {name!r} is outside the zip")
                if entry.file_size > max(MAX_FILE_BYTES, MAX_RATIO * entry.compress_size):
                    self._refuse_bomb(f"{name!r} claims {entry.file_size} bytes")
                members.append(entry)
        if sum(member.compress_size for member in members) > archive_size:
            self._refuse_bomb("its files overlap")
        total_size = sum(member.file_size for member in members)
        if total_size > MAX_RATIO * archive_size:
            self._refuse_bomb(f"its {archive_size} bytes claim to hold {total_size}")
        first: dict[str, zipfile.ZipInfo] = {}
        for member in sorted(members, key=lambda member: member.filename):
            if first.setdefault(member.filename, member) is not member:
                reason = "the archive has several files of this name; the first is kept"
                issue = FileIssue(member.filename, "duplicate name", reason)
                self._files.unreadable.append(issue)
        return list(first.values())

    def _count_entries(self) -> int:
        """Count the entries in the directory of the zip without the memory that zipfile needs."""
        with self.path.open("rb") as file, contextlib.suppress(OSError):
            if record := zipfile._EndRecData(file):  # type: ignore[attr-defined]
                size, end = record[5], record[9]  # directory, without up to 76 bytes of ZIP64
                if size > _MAX_DIRECTORY_BYTES:
                    raise ValueError(f"its directory has an impossible size of {size} bytes")
                start = max(end - size - 76, 0)
                file.seek(start)
                return file.read(end - start).count(b"PK\1\2")
        return 0

    def _refuse_unlisted(self, start: int, end: int) -> None:
        """Raise ValueError if zipfile missed a directory entry between two byte positions."""
        with self.path.open("rb") as file:
            file.seek(max(start, end - _MAX_TAIL_BYTES, 0))
            if b"PK\1\2" in file.read(max(0, end - file.tell())):
                raise ValueError("it has more files than its end record counts")

    def _plain_name(self, name: str) -> str:
        """Return a file name with / as separator and without ".", the name of the same folder.

        Some programs write \\ as separator, or write "./" before a name.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
        inner = parts[:-1] if parts[-1:] == [""] else parts
        if not {"", ".."}.isdisjoint(inner) or "\0" in name or (inner and inner[0][1:2] == ":"):
            raise DataError(
                f"{self.path}: refused, because {name!r} is not a relative path in the archive; "
                "get the archive from a source that you trust, or zip the files again"
            )
        return "/".join(parts)

    def _refuse_bomb(self, reason: str) -> None:
        raise DataError(f"{self.path}: refused as a possible decompression bomb: {reason}")


def is_zip(path: Path) -> bool:
    """Return whether a file begins with the signature of a zip."""
    return starts_with(path, b"PK\3\4", b"PK\5\6")


def _unreadable_reason(entry: zipfile.ZipInfo) -> str:
    """Return the reason why a zip entry cannot be read; return "" if it can be read."""
    mode = entry.external_attr >> 16
    if entry.flag_bits & 1:
        return "encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {entry.compress_type} is not supported; use store or deflate"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "a link" if stat.S_ISLNK(mode) else "not a regular file"
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        return "damaged archive: two sizes for one file"
    return ""
