"""Where patches lie: what a folder and a zip have in common for those who list and read them."""

import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

# A 50x50 RGB patch is at most some 10 kB; what is larger by this much is something else.
MAX_FILE_BYTES = 4_000_000
UNREADABLE = "unreadable"  # the reason of a problem


class UnreadablePatchError(Exception):
    """Why a file holds no usable patch, in a few words."""


@dataclass(frozen=True)
class FileIssue:
    """One file (or folder) that was left out, or kept although something is odd about it."""

    path: str
    reason: str
    detail: str = ""


@dataclass
class FileList:
    """The files of a patch tree, not yet understood.

    Attributes:
        paths: The PNG files as sorted paths below the root.
        num_other: Count of other or hidden files.
        unreadable: Folders that could not be listed, and files of a zip that cannot be read.
    """

    paths: list[str] = field(default_factory=list)
    num_other: int = 0
    unreadable: list[FileIssue] = field(default_factory=list)


class PatchStore(ABC):
    """A place with patches in it. Any number of threads may read from one.

    Attributes:
        path: The folder or file.
        above: Names of the two folders above its top, empty where there are none: a tree may be
            given by one patient's folder.
    """

    path: Path
    above: tuple[str, str] = ("", "")

    @abstractmethod
    def listing(self) -> FileList:
        """List the files."""

    @abstractmethod
    def size(self, path: str) -> int:
        """Return the size of a file in bytes, -1 where it cannot be told."""

    @abstractmethod
    def state(self, path: str) -> str:
        """Return words that change when the file does, without reading it."""

    @abstractmethod
    def read(self, path: str) -> tuple[bytes, str]:
        """Return a file's bytes, and its ``state`` as it was before they were read.

        They are no more than the first ``MAX_FILE_BYTES + 1``.

        Raises:
            UnreadablePatchError: It cannot be read.
        """

    def close(self) -> None:
        """Give back what was opened."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def is_patch_name(name: str) -> bool:
    """Return whether a file of this name, without its folders, is to be looked at."""
    # macOS puts a hidden "._NAME.png" that is no PNG beside each file.
    return name.lower().endswith(".png") and name[0] != "."


class FolderStore(PatchStore):
    """A patch tree in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # As it was given, and not as a link leads: what a store calls a folder may be anything.
        base = Path(os.path.abspath(path))  # noqa: PTH100
        self.above = (base.parent.name, base.name)

    def listing(self) -> FileList:
        """List the files below the folder, links followed, each folder once."""
        listing = FileList()
        seen: set[str] = set()
        # Level by level and links last: a folder reached twice is read under its own name, and a
        # link that leads back up ends there.
        level = [""]
        while level:
            below: list[tuple[bool, str]] = []
            for folder in level:
                real = os.path.realpath(self.path / folder)
                if real not in seen:
                    seen.add(real)
                    below += _list_folder(self.path, folder, listing)
            level = [folder for _, folder in sorted(below)]
        listing.paths.sort()
        return listing

    def size(self, path: str) -> int:
        """Return the size of a file in bytes, -1 where it cannot be told."""
        try:
            return os.stat(f"{self.path}/{path}").st_size  # noqa: PTH116 - many files: no Path each
        except OSError:
            return -1

    def state(self, path: str) -> str:
        """Return size and time of change of a file."""
        try:
            found = os.stat(f"{self.path}/{path}")  # noqa: PTH116
        except OSError:
            return "unreadable"
        return _state(found)

    def read(self, path: str) -> tuple[bytes, str]:
        """Return a file's bytes, and its ``state`` as it was before they were read.

        They are no more than the first ``MAX_FILE_BYTES + 1``.

        Raises:
            UnreadablePatchError: It cannot be read, or is no regular file.
        """
        try:
            # A named pipe would otherwise wait for its writer, for ever.
            fd = os.open(f"{self.path}/{path}", os.O_RDONLY | os.O_NONBLOCK)
            try:
                found = os.fstat(fd)
                if stat.S_ISDIR(found.st_mode):
                    raise UnreadablePatchError("cannot be read: Is a directory")
                if not stat.S_ISREG(found.st_mode):
                    raise UnreadablePatchError("not a regular file")
                # A buffer of the file's size: one of the limit's costs more than the decoding.
                return os.read(fd, min(found.st_size, MAX_FILE_BYTES) + 1), _state(found)
            finally:
                os.close(fd)
        except OSError as error:
            raise UnreadablePatchError(f"cannot be read: {error.strerror}") from None


def _state(found: os.stat_result) -> str:
    return f"{found.st_size}\0{found.st_mtime_ns}"


def _list_folder(root: Path, folder: str, listing: FileList) -> list[tuple[bool, str]]:
    """Add the files of one folder; return its folders, each with whether it is a link."""
    try:
        with os.scandir(root / folder) as entries:
            found = [(entry.is_dir(), entry.is_symlink(), entry.name) for entry in entries]
    except OSError as error:
        listing.unreadable.append(FileIssue(f"{folder}/", UNREADABLE, str(error.strerror)))
        return []
    start = f"{folder}/" if folder else ""
    files = [name for is_folder, _, name in found if not is_folder]
    pngs = [name for name in files if is_patch_name(name)]
    listing.num_other += len(files) - len(pngs)
    listing.paths += [start + name for name in pngs]
    return [(is_link, start + name) for is_folder, is_link, name in found if is_folder]
