"""Open slides of all supported formats, with their levels and microns per pixel."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import SlideError
from wsi_idc.runtime.prefetch import prefetch
from wsi_idc.runtime.resources import available_cores
from wsi_idc.slides.openslide_reader import GENERIC_TIFF, OpenSlideReader, detect_format
from wsi_idc.slides.reader import SUFFIXES, ImageReader, SlideReader
from wsi_idc.slides.resolution import check_given_mpp, choose_mpp
from wsi_idc.slides.tiff_pages import inspect_tiff, is_tiff
from wsi_idc.slides.tiff_reader import TiffReader

logger = logging.getLogger(__name__)

_MAX_STRETCH_OF_LEVELS, _PADDING_PX = 4, 1024  # tolerant: some slides pad levels to full tiles
_BLOCK_PX = 1024
_MAX_READERS = 4
_NUM_SAMPLES, _SAMPLE_BYTES = 64, 2**16
_TABLE_SUFFIXES = (".csv", ".tsv")
_FOREIGN_SUFFIXES = (".csv", ".h5", ".json", ".txt")


@dataclass(frozen=True)
class Level:
    """One level of a slide.

    Attributes:
        width, height: Size of the level in px.
        mpp: Microns per px of the level.
    """

    width: int
    height: int
    mpp: float


class Slide(AbstractContextManager["Slide"]):
    """An open slide; the end of a ``with`` block closes the slide.

    Attributes:
        path: Slide file.
        width, height: Size of level 0 in px.
        mpp: Microns per level-0 px.
        mpp_source: Origin of ``mpp``: "file", "given", or "given, but the file states 0.5".
        levels: All levels of the slide, level 0 first.
        num_readers: Number of threads that should read concurrently.
        bounds: Scanned area, to which QuPath crops the slide; None if it is the complete slide.
        properties: Metadata of the file with OpenSlide's names, such as
            "hamamatsu.XOffsetFromSlideCentre"; empty if OpenSlide does not read the file.
    """

    def __init__(
        self,
        path: Path,
        reader: SlideReader,
        *,
        mpp: float,
        mpp_source: str,
        copy: Path | None = None,
    ) -> None:
        self.path = path
        self._copy = copy
        self.width, self.height = reader.sizes[0]
        self.mpp = mpp
        self.mpp_source = mpp_source
        self.levels = tuple(
            Level(*size, mpp * downsample)
            for size, downsample in zip(reader.sizes, reader.downsamples, strict=True)
        )
        self.num_readers = min(available_cores(), _MAX_READERS)
        self.bounds = reader.bounds
        self.properties = reader.properties
        self._reader = reader

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the slide file."""
        self._reader.close()

    def fingerprint(self) -> str:
        """Return a hexadecimal SHA-256 that changes if the slide file changes.

        The SHA-256 is computed from the size, the modification time and samples of the bytes.
        Reading all bytes of a large slide would take as long as mapping the slide. If a slide has
        several files, the size and modification time of every file are included.
        """
        digest = hashlib.sha256()
        for file in (self.path, *companion_files(self.path)):
            state = file.stat()
            digest.update(repr((file.name, state.st_size, state.st_mtime_ns)).encode())
        size = self.path.stat().st_size
        with self.path.open("rb") as opened:
            for sample in range(_NUM_SAMPLES):
                opened.seek(max(0, size - _SAMPLE_BYTES) * sample // (_NUM_SAMPLES - 1))
                digest.update(opened.read(_SAMPLE_BYTES))
        return digest.hexdigest()

    def read(self, level: int, x: int, y: int, *, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region of a level; the position and the size are in px of the level.

        Returns:
            RGB pixels, shape (height, width, 3), uint8. The region is white outside the slide, and
            transparent px are blended with white.
        """
        with _errors_name_original(self.path, self._copy):
            return self._reader.read(level, x, y, width=width, height=height)

    def thumbnail(self, max_side: int = 1024) -> NDArray[np.uint8]:
        """Return a small picture of the complete slide. The longer side has ``max_side`` px.

        Returns:
            RGB picture, shape (h, w, 3), uint8. A slide that is smaller than ``max_side`` is not
            enlarged.
        """
        scale = min(1.0, max_side / max(self.width, self.height))
        width, height = (max(1, round(side * scale)) for side in (self.width, self.height))
        fine = [(level.width, i) for i, level in enumerate(self.levels) if level.width >= width]
        index = min(fine)[1]
        level = self.levels[index]
        scale_x, scale_y = level.width / width, level.height / height
        # Read the level in blocks: if a slide has only level 0, this level may not fit into memory.
        step_x, step_y = max(1, int(_BLOCK_PX / scale_x)), max(1, int(_BLOCK_PX / scale_y))
        thumbnail = np.empty((height, width, 3), np.uint8)

        def draw(corner: tuple[int, int]) -> None:
            left, top = corner
            right, bottom = min(left + step_x, width), min(top + step_y, height)
            x, end_x = round(left * scale_x), round(right * scale_x)
            y, end_y = round(top * scale_y), round(bottom * scale_y)
            region = self.read(index, x, y, width=end_x - x, height=end_y - y)
            size = (right - left, bottom - top)
            block = cv2.resize(region, size, interpolation=cv2.INTER_AREA)
            thumbnail[top:bottom, left:right] = block

        corners = [(x, y) for y in range(0, height, step_y) for x in range(0, width, step_x)]
        for _ in prefetch(draw, corners, num=self.num_readers):
            pass
        return thumbnail


def companion_files(path: Path) -> list[Path]:
    """Return all files of a slide except ``path``; the list is empty if the slide is one file."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        files = path.with_suffix("").rglob("*")
    elif suffix == ".dcm":
        files = (file for file in path.parent.glob("*") if file.suffix.lower() == suffix)
    elif suffix in (".vms", ".vmu"):
        # The files of the slide have various suffixes. Tables and maps in the same folder do not
        # belong to the slide.
        neighbors = path.parent.glob("*")
        files = (file for file in neighbors if file.suffix.lower() not in _FOREIGN_SUFFIXES)
    else:
        return []
    return sorted(file for file in files if file.is_file() and file != path)


def open_slide(path: Path, *, mpp: float | None = None, copy: Path | None = None) -> Slide:
    """Open a slide that OpenSlide supports, or a plain TIFF, PNG or JPEG.

    Args:
        path: Slide file.
        mpp: Microns per level-0 px; None means the value that the slide file states.
        copy: Copy of the slide file on a faster disk, from which the pixels are read.

    Raises:
        SlideError: The file cannot be read, does not contain a complete slide in color, or has no
            plausible mpp.
    """
    path = Path(path)
    with _errors_name_original(path, copy):
        reader, mpp, mpp_source = _open_reader(path if copy is None else copy, mpp)
    return Slide(path, reader, mpp=mpp, mpp_source=mpp_source, copy=copy)


@contextmanager
def _errors_name_original(path: Path, copy: Path | None) -> Iterator[None]:
    """Context manager: errors about the copy of a slide file name the slide file too."""
    try:
        yield
    except SlideError as error:
        if copy is None:
            raise
        text = str(error).replace(str(copy), f"{path} (read from its copy {copy})", 1)
        raise SlideError(text) from None


def _open_reader(path: Path, mpp: float | None) -> tuple[SlideReader, float, str]:
    """Return the reader of a slide file, the microns per level-0 px, and their origin."""
    check_given_mpp(path, mpp)
    head = _read_head(path)
    vendor = detect_format(path)
    has_plain_pages = is_tiff(head) and vendor in (None, GENERIC_TIFF)
    tiff = inspect_tiff(path) if has_plain_pages else None
    if tiff is not None and not tiff.is_plain:
        reader: SlideReader = TiffReader(path)
        if tiff.number > 1:
            logger.warning(
                "%s: page %d is read as the slide, because this page is the largest",
                path,
                tiff.number,
            )
    elif vendor is not None:
        reader = OpenSlideReader(path)
    elif path.suffix.lower() in SUFFIXES:
        reader = ImageReader(path)
    else:
        raise SlideError(f"{path}: {_describe_unsupported(path, head)}")
    try:
        _check_levels(path, reader.sizes)
        mpp, mpp_source = choose_mpp(path, (tiff and tiff.mpp) or reader.file_mpp, given=mpp)
    except SlideError:
        reader.close()
        raise
    return reader, mpp, mpp_source


def _check_levels(path: Path, sizes: Sequence[tuple[int, int]]) -> None:
    width, height = sizes[0]
    for number, (cols, rows) in enumerate(sizes):
        if (
            rows > _MAX_STRETCH_OF_LEVELS * cols * height / width + _PADDING_PX
            or cols > _MAX_STRETCH_OF_LEVELS * rows * width / height + _PADDING_PX
        ):
            raise SlideError(
                f"{path}: damaged or cut short (level {number} of {cols}x{rows} px does not fit "
                f"level 0 of {width}x{height} px)"
            )


def _read_head(path: Path) -> bytes:
    """Return the first 16 bytes of a slide file; check that the file is regular and not empty."""
    try:
        if path.is_dir():
            raise SlideError(f"{path}: is a folder; give a slide file")
        if path.exists() and not path.is_file():  # opening a named pipe would block
            raise SlideError(f"{path}: is not a regular file; give a slide file")
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise SlideError(f"{path}: no such file; give a slide file") from None
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise SlideError(f"{path}: is empty; copy the slide again")
    return head


def _describe_unsupported(path: Path, head: bytes) -> str:
    """Return the end of an error message about a file that no reader supports."""
    for start, kind, suffix in ((b"\xff\xd8\xff", "JPEG", ".jpg"), (b"\x89PNG", "PNG", ".png")):
        if head.startswith(start):
            return f"is a plain {kind} picture; rename it to {path.stem}{suffix} and give --mpp"
    if is_tiff(head):
        return "a TIFF that is cut short, damaged or of a kind that OpenSlide does not read"
    if path.suffix.lower() in _TABLE_SUFFIXES:
        return "is a table; give it as --manifest to map, or as --slides to prepare"
    return "not a slide that OpenSlide reads"
