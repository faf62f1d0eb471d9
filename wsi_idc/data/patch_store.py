"""Where patches lie: what a folder and a zip have in common for those who list and read them."""

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
class Problem:
    """One file (or folder) that was left out, or kept although something is odd about it."""

    path: str
    reason: str
    detail: str = ""


@dataclass
class Listing:
    """The files of a patch tree, not yet understood.

    Attributes:
        paths: The PNG files as sorted paths below the root.
        num_other: Count of other or hidden files.
        unreadable: Folders that could not be listed, and files of a zip that cannot be read.
    """

    paths: list[str] = field(default_factory=list)
    num_other: int = 0
    unreadable: list[Problem] = field(default_factory=list)


class Origin(ABC):
    """A place with patches in it. Any number of threads may read from one.

    Attributes:
        path: The folder or file.
        above: Names of the two folders above its top, empty where there are none: a tree may be
            given by one patient's folder.
    """

    path: Path
    above: tuple[str, str] = ("", "")

    @abstractmethod
    def listing(self) -> Listing:
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
