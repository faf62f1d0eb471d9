"""Interface for listing and reading the files of a patch tree, and its version for folders."""

import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

# A 50x50 RGB patch has at most about 10 kB; a file above this limit is not a patch.
MAX_FILE_BYTES = 4_000_000
UNREADABLE = "unreadable"  # reason of a file issue


class UnreadablePatchError(Exception):
    """A file holds no usable patch; the message is a short reason."""


@dataclass(frozen=True)
class FileIssue:
    """A file or folder that is left out, or is kept although something is odd about it."""

    path: str
    reason: str
    detail: str = ""


@dataclass
class FileList:
    """File names of a patch tree, before they are parsed.

    Attributes:
        paths: Sorted paths of the PNG files below the root.
        num_other: Number of other or hidden files.
        unreadable: Folders that cannot be listed, and files of a zip that cannot be read.
    """

    paths: list[str] = field(default_factory=list)
    num_other: int = 0
    unreadable: list[FileIssue] = field(default_factory=list)


class PatchStore(ABC):
    """Folder or zip with the files of a patch tree; any number of threads may read from it.

    Attributes:
        path: The folder or zip file.
        parent_names: Names of the two folders above the root, empty at the top of the file system;
            the root may be the folder of one patient or class.
    """

    path: Path
    parent_names: tuple[str, str] = ("", "")

    @abstractmethod
    def list_files(self) -> FileList:
        """List the files."""

    @abstractmethod
    def size(self, path: str) -> int:
        """Return the size of a file in bytes, -1 if it is unknown."""

    @abstractmethod
    def stat_key(self, path: str) -> str:
        """Return a text that changes when the file changes, without reading the file."""

    @abstractmethod
    def read(self, path: str) -> tuple[bytes, str]:
        """Read a file, at most its first ``MAX_FILE_BYTES + 1`` bytes.

        Returns:
            The bytes, and the ``stat_key`` of the file from before they were read.

        Raises:
            UnreadablePatchError: The file cannot be read.
        """

    def close(self) -> None:
        """Close open files."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_patch_name(name: str) -> bool:
    """Return whether a file name, without its folders, may be that of a patch."""
    # macOS writes a hidden "._NAME.png" beside each file, which is not a PNG.
    return name.lower().endswith(".png") and name[0] != "."


class FolderStore(PatchStore):
    """Patch tree in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The path as given, not the target of a link, whose name may be arbitrary.
        root = Path(os.path.abspath(path))  # noqa: PTH100
        self.parent_names = (root.parent.name, root.name)

    def list_files(self) -> FileList:
        """List the files below the folder; follow links, and list each folder once."""
        files = FileList()
        seen: set[str] = set()
        # Level by level, links last: a folder that is reached twice keeps its own name, and a link
        # to a folder above it ends the search there.
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
        """Add the files of one folder; return its subfolders, each with whether it is a link."""
        try:
            with os.scandir(self.path / folder) as scan:
                entries = [(entry.is_dir(), entry.is_symlink(), entry.name) for entry in scan]
        except OSError as error:
            files.unreadable.append(FileIssue(f"{folder}/", UNREADABLE, str(error.strerror)))
            return []
        prefix = f"{folder}/" if folder else ""
        names = [name for is_folder, _, name in entries if not is_folder]
        patch_names = [name for name in names if is_patch_name(name)]
        files.num_other += len(names) - len(patch_names)
        files.paths += [prefix + name for name in patch_names]
        return [(is_link, prefix + name) for is_folder, is_link, name in entries if is_folder]

    def size(self, path: str) -> int:
        """Return the size of a file in bytes, -1 if it is unknown."""
        try:
            return os.stat(f"{self.path}/{path}").st_size  # noqa: PTH116 - faster than a Path
        except OSError:
            return -1

    def stat_key(self, path: str) -> str:
        """Return size and modification time of a file as a text."""
        try:
            return _stat_key(os.stat(f"{self.path}/{path}"))  # noqa: PTH116
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
                    raise UnreadablePatchError("cannot be read: Is a directory")
                if not stat.S_ISREG(status.st_mode):
                    raise UnreadablePatchError("not a regular file")
                # A buffer as large as the limit costs more time than the decoding.
                data = os.read(fd, min(status.st_size, MAX_FILE_BYTES) + 1)
                return data, _stat_key(status)
            finally:
                os.close(fd)
        except OSError as error:
            raise UnreadablePatchError(f"cannot be read: {error.strerror}") from None


def _stat_key(status: os.stat_result) -> str:
    return f"{status.st_size}\0{status.st_mtime_ns}"
