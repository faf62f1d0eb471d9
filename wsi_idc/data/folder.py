"""Patches in a folder."""

import os
import stat
from pathlib import Path

from wsi_idc.data.patch_store import (
    MAX_FILE_BYTES,
    UNREADABLE,
    Listing,
    Origin,
    Problem,
    UnreadablePatchError,
    is_patch_name,
)


class Folder(Origin):
    """A patch tree in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # As it was given, and not as a link leads: what a store calls a folder may be anything.
        base = Path(os.path.abspath(path))  # noqa: PTH100
        self.above = (base.parent.name, base.name)

    def listing(self) -> Listing:
        """List the files below the folder, links followed, each folder once."""
        listing = Listing()
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


def _list_folder(root: Path, folder: str, listing: Listing) -> list[tuple[bool, str]]:
    """Add the files of one folder; return its folders, each with whether it is a link."""
    try:
        with os.scandir(root / folder) as entries:
            found = [(entry.is_dir(), entry.is_symlink(), entry.name) for entry in entries]
    except OSError as error:
        listing.unreadable.append(Problem(f"{folder}/", UNREADABLE, str(error.strerror)))
        return []
    start = f"{folder}/" if folder else ""
    files = [name for is_folder, _, name in found if not is_folder]
    pngs = [name for name in files if is_patch_name(name)]
    listing.num_other += len(files) - len(pngs)
    listing.paths += [start + name for name in pngs]
    return [(is_link, start + name) for is_folder, is_link, name in found if is_folder]
