"""Open a slide of any format, and know its microns per pixel."""

import hashlib
import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.constants import POSSIBLE_MPP
from wsi_idc.core.errors import SlideError
from wsi_idc.runtime.prefetch import prefetch
from wsi_idc.runtime.resources import available_cores
from wsi_idc.slides.image_reader import SUFFIXES, ImageReader
from wsi_idc.slides.openslide_reader import OpenSlideReader, is_pyramid
from wsi_idc.slides.reader import SlideReader
from wsi_idc.slides.tiling import choose_thumbnail_level, fit_size, split_range

logger = logging.getLogger(__name__)

MIN_MPP, MAX_MPP = POSSIBLE_MPP
# Pixels whose sides differ by more would squeeze the tissue for a network to see.
_MAX_STRETCH = 0.03
# A given number that differs by more from what the file states is worth a line.
_MAX_CONTRADICTION = 0.1
_MAX_STRETCH_OF_LEVELS, _PADDING_PX = 4, 1024
_BLOCK_PX = 1024
_MAX_READERS = 4
_SAMPLES, _SAMPLE_BYTES = 64, 2**16
_FOREIGN = (".csv", ".h5", ".json", ".txt")


@dataclass(frozen=True)
class Level:
    """One level of a slide.

    Attributes:
        width, height: In px of the level.
        mpp: Microns per px of the level.
    """

    width: int
    height: int
    mpp: float


class Slide:
    """A slide opened for reading; use it as a context manager.

    Attributes:
        path: The file.
        width, height: Of level 0, in px.
        mpp: Microns per level-0 px.
        mpp_source: "file" or "given".
        levels: All levels, level 0 first.
        num_readers: How many threads may well read at the same time.
    """

    def __init__(self, path: Path, source: SlideReader, *, mpp: float, mpp_source: str) -> None:
        self.path = path
        self.width, self.height = source.sizes[0]
        self.mpp = mpp
        self.mpp_source = mpp_source
        self.levels = tuple(
            Level(*size, mpp * downsample)
            for size, downsample in zip(source.sizes, source.downsamples, strict=True)
        )
        self.num_readers = min(available_cores(), _MAX_READERS)
        self._source = source

    def __enter__(self) -> "Slide":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fingerprint(self) -> str:
        """Return a SHA-256, as hex, that tells this file from others, and from itself if changed.

        Over size, time of change and samples of its bytes: reading the gigabytes of a slide takes
        as long as mapping it. Of a format that is spread over more files, over those beside it too.
        """
        digest = hashlib.sha256()
        for file in (self.path, *_companion_files(self.path)):
            state = file.stat()
            digest.update(repr((file.name, state.st_size, state.st_mtime_ns)).encode())
        size = self.path.stat().st_size
        with self.path.open("rb") as opened:
            for part in range(_SAMPLES):
                opened.seek(max(0, size - _SAMPLE_BYTES) * part // (_SAMPLES - 1))
                digest.update(opened.read(_SAMPLE_BYTES))
        return digest.hexdigest()

    def close(self) -> None:
        """Give the file back."""
        self._source.close()

    def read(self, level: int, x: int, y: int, *, width: int, height: int) -> NDArray[np.uint8]:
        """Return a region, all in px of the level.

        Returns:
            Shape (height, width, 3), uint8; white outside the slide and under transparency.

        Raises:
            SlideError: The file is damaged there.
        """
        return self._source.read(level, x, y, width=width, height=height)

    def thumbnail(self, max_side: int = 1024) -> NDArray[np.uint8]:
        """Return the whole slide, averaged down until no side is longer than ``max_side``.

        Returns:
            Shape (h, w, 3), uint8; never larger than level 0.

        Raises:
            SlideError: The file is damaged.
        """
        width, height = fit_size(self.width, self.height, max_side=max_side)
        index = choose_thumbnail_level([level.width for level in self.levels], width)
        level = self.levels[index]
        per_px = level.width / width, level.height / height
        # In blocks: where a slide has no other level, level 0 does not fit in memory.
        xs = split_range(width, step=max(1, int(_BLOCK_PX / per_px[0])))
        ys = split_range(height, step=max(1, int(_BLOCK_PX / per_px[1])))
        picture = np.empty((height, width, 3), np.uint8)

        def draw(block: tuple[int, int, int, int]) -> None:
            left, top, right, bottom = block
            x, end_x = round(left * per_px[0]), round(right * per_px[0])
            y, end_y = round(top * per_px[1]), round(bottom * per_px[1])
            region = self.read(index, x, y, width=end_x - x, height=end_y - y)
            size = (right - left, bottom - top)
            picture[top:bottom, left:right] = cv2.resize(region, size, interpolation=cv2.INTER_AREA)

        blocks = [(x, y, end_x, end_y) for y, end_y in ys for x, end_x in xs]
        for _ in prefetch(draw, blocks, num=self.num_readers):
            pass
        return picture


def _companion_files(path: Path) -> list[Path]:
    """Return the other files of a slide whose format is spread over several."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        found = path.with_suffix("").rglob("*")
    elif suffix == ".dcm":
        found = (file for file in path.parent.glob("*") if file.suffix.lower() == suffix)
    elif suffix in (".vms", ".vmu"):
        # Their parts are of several suffixes; notes and maps that people keep there are none.
        found = (file for file in path.parent.glob("*") if file.suffix.lower() not in _FOREIGN)
    else:
        return []
    return sorted(file for file in found if file.is_file() and file != path)


def open_slide(path: Path, *, mpp: float | None = None) -> Slide:
    """Open a slide that OpenSlide reads, or a plain TIFF, PNG or JPEG.

    Args:
        path: The file.
        mpp: Microns per level-0 px where the file does not state them, or states them wrong.

    Raises:
        SlideError: It cannot be read, or does not state its microns per pixel.
    """
    path = Path(path)
    if mpp is not None and not _is_possible(mpp):
        raise SlideError(f"{path}: {mpp:g} um/px cannot be; give {MIN_MPP:g} to {MAX_MPP:g}")
    head = _head(path)
    if is_pyramid(path):
        source: SlideReader = OpenSlideReader(path)
    elif path.suffix.lower() in SUFFIXES:
        source = ImageReader(path)
    else:
        raise SlideError(f"{path}: {_what_it_is(path, head)}")
    try:
        _check_levels(path, source.sizes)
        mpp, mpp_source = _choose_mpp(path, source.file_mpp, given=mpp)
    except SlideError:
        source.close()
        raise
    return Slide(path, source, mpp=mpp, mpp_source=mpp_source)


def _check_levels(path: Path, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise SlideError where levels are not of one picture; some are padded to whole tiles."""
    width, height = sizes[0]
    for number, (cols, rows) in enumerate(sizes):
        if (
            rows > _MAX_STRETCH_OF_LEVELS * cols * height / width + _PADDING_PX
            or cols > _MAX_STRETCH_OF_LEVELS * rows * width / height + _PADDING_PX
        ):
            raise SlideError(
                f"{path}: damaged or cut short (level {number} of {cols}x{rows} px is not that of "
                f"{width}x{height} px)"
            )


def _head(path: Path) -> bytes:
    """Return the first bytes of a file that is one and has some."""
    try:
        # A named pipe would otherwise wait for its writer, for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise SlideError(f"{path}: is a folder; give the file of a slide")
            if not stat.S_ISREG(mode):
                raise SlideError(f"{path}: is no regular file; give the file of a slide")
            head = os.read(fd, 16)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise SlideError(f"{path}: no such file; give the file of a slide") from None
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise SlideError(f"{path}: is empty; copy the slide again")
    return head


def _what_it_is(path: Path, head: bytes) -> str:
    """Say what a file is that OpenSlide does not know and whose name is not that of a picture."""
    for start, kind, suffix in ((b"\xff\xd8\xff", "JPEG", ".jpg"), (b"\x89PNG", "PNG", ".png")):
        if head.startswith(start):
            return f"is a plain {kind} picture; name it {path.stem}{suffix} and give --mpp"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "a TIFF that is cut short, damaged or of a kind OpenSlide does not read"
    return "not a slide that OpenSlide reads"


def _is_possible(mpp: float) -> bool:
    return MIN_MPP <= mpp <= MAX_MPP


def _choose_mpp(
    path: Path, stated: tuple[float, float] | None, *, given: float | None
) -> tuple[float, str]:
    """Return microns per pixel and where they come from."""
    if given is not None:
        if stated is not None and abs(stated[0] / given - 1) > _MAX_CONTRADICTION:
            logger.warning("%s: %g um/px as given; the file states %g", path, given, stated[0])
        return given, "given"
    if stated is None:
        raise SlideError(f"{path}: the file does not state its microns per pixel; give --mpp")
    x, y = stated
    if not (_is_possible(x) and _is_possible(y)):
        raise SlideError(
            f"{path}: the file states {x:g} x {y:g} um per pixel, which cannot be; give --mpp"
        )
    if abs(x / y - 1) > _MAX_STRETCH:
        raise SlideError(
            f"{path}: its pixels are not square ({x:g} x {y:g} um); give --mpp if the file is "
            "wrong, else resample it"
        )
    return (x + y) / 2, "file"
