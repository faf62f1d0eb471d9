"""Measure every patch of a pack in one pass over its pixels.

Everything is a sum of whole numbers, so that the same pack gives the same numbers on any machine,
whatever the number of threads. Padding is left out: a patch is measured as large as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.errors import DataError
from wsi_idc.core.progress import progress
from wsi_idc.data.pack import Pack

CHANNELS = ("red", "green", "blue")
LABELS = (0, 1, -1)

# Glass is at 240 or so in this data set. Tissue is darker and has colour; what is darker without
# colour is dirt, ink, or the edge of the glass.
GLASS_GREY = 220
MIN_TISSUE_COLOUR = 20
DIM_GREY = 200
MAX_DIM_COLOUR = 30
DIM_SHARE_OF_LINE = 0.9

OD_UNIT = 1000  # optical density is summed in whole thousandths
_WHITE = 255
_PATCHES_AT_A_TIME = 512
_HASH_SIDE = 8
# The cosines of the hash are whole numbers too: their sums are exact, their signs never in doubt.
_COSINE_UNIT = 1024


@dataclass(frozen=True)
class PixelStatistics:
    """What one pass over the pixels of a pack found.

    Attributes:
        table: One row a patch, in the order of the pack: ``num_px`` (without padding); of each
            channel ``sum_*`` and ``squares_*``, sums of values 0..255 and of their squares;
            ``tissue_px``, pixels of stained tissue, and ``od_*``, their summed optical density in
            thousandths; ``dim_lines``, lines of pixels that are grey from side to side; ``hash``,
            63 bits as uint64.
        mean_patches: Label to the mean of its patches of full size, shape (h, w, 3), 0..1; labels
            without any are not in it.
    """

    table: pd.DataFrame
    mean_patches: dict[int, NDArray[np.float64]]


def pixel_statistics(pack: Pack) -> PixelStatistics:
    """Measure every patch of a pack.

    Raises:
        DataError: The pack is cut short while it is read, or another has taken its place.
    """
    side = pack.info.patch_px
    sizes = pack.index[["height", "width"]].to_numpy(np.int64)
    labels = pack.index["label"].to_numpy()
    is_full = (sizes == side).all(axis=1)
    parts = []
    sums = np.zeros((3, len(LABELS), side * side))  # (channel, label, pixel)
    with progress(len(pack), what="measuring") as bar:
        start = 0
        for block in _blocks(pack):
            rows = slice(start, start + len(block))
            _whiten_padding(block, sizes[rows])
            planes = np.ascontiguousarray(block.transpose(3, 0, 1, 2))  # (3, N, h, w)
            parts.append(_measure_block(block, planes, sizes[rows]))
            of_label = (labels[rows] == np.array(LABELS)[:, None]) & is_full[rows]
            flat = planes.reshape(3, len(block), -1).astype(np.float32)
            sums += of_label.astype(np.float32) @ flat  # below 2**24, so exact
            start = rows.stop
            bar.update(len(block))
    mean_patches = {}
    for at, label in enumerate(LABELS):
        num = int(((labels == label) & is_full).sum())
        if num:
            mean_patches[label] = (sums[:, at].T / (num * _WHITE)).reshape(side, side, 3)
    return PixelStatistics(pd.concat(parts, ignore_index=True), mean_patches)


def perceptual_hash(grey: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return 63 bits a picture that near-identical pictures share.

    They are the signs of the lowest 8 x 8 coefficients of the discrete cosine transform, but for
    the mean; brightness and contrast do not matter, place and orientation do.

    Args:
        grey: Pictures, shape (N, side, side).

    Returns:
        Hashes, shape (N,), uint64; 0 for one colour.
    """
    side = grey.shape[-1]
    angle = np.pi / side * np.outer(np.arange(_HASH_SIDE), np.arange(side) + 0.5)
    cosines = np.rint(np.cos(angle) * _COSINE_UNIT)  # (8, side)
    low = cosines @ grey.astype(np.float64) @ cosines.T  # (N, 8, 8), whole, below 2**53
    # Rounded cosines do not quite sum to 0: what a flat picture gives is taken off.
    total = cosines.sum(axis=1)
    flat = grey.sum(axis=(1, 2), dtype=np.float64)[:, None, None] * np.outer(total, total)
    bits = (low > flat / side**2).reshape(len(grey), -1)
    bits[:, 0] = False
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def _blocks(pack: Pack) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of a pack some patches at a time, in memory of their own.

    They are read, not mapped: what a pass has mapped counts as its memory, and a job with a
    memory limit would be charged for the whole pack.
    """
    assert isinstance(pack.patches, np.memmap)
    shape = pack.patches.shape[1:]
    with pack.file.open("rb", buffering=0) as file:
        pack.check_same()
        file.seek(pack.patches.offset)
        for start in range(0, len(pack), _PATCHES_AT_A_TIME):
            num = min(_PATCHES_AT_A_TIME, len(pack) - start)
            block = np.fromfile(file, np.uint8, count=num * int(np.prod(shape)))
            if block.size < num * np.prod(shape):
                raise DataError(f"{pack.file}: the pack was cut short meanwhile; make it again")
            yield block.reshape(num, *shape)


def _whiten_padding(block: NDArray[np.uint8], sizes: NDArray[np.int64]) -> None:
    """Make sure that what lies beyond each patch's own size is white."""
    for at in np.flatnonzero((sizes < block.shape[1]).any(axis=1)):
        height, width = sizes[at]
        block[at, height:] = _WHITE
        block[at, :, width:] = _WHITE


def _measure_block(
    block: NDArray[np.uint8], planes: NDArray[np.uint8], sizes: NDArray[np.int64]
) -> pd.DataFrame:
    num, side = block.shape[:2]
    num_px = sizes.prod(axis=1)
    num_padding = side * side - num_px
    grey = cv2.cvtColor(block.reshape(num * side, side, 3), cv2.COLOR_RGB2GRAY)
    grey = grey.reshape(num, side, side)
    highest = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
    colour = highest - np.minimum(np.minimum(planes[0], planes[1]), planes[2])
    tissue = (grey < GLASS_GREY) & (colour >= MIN_TISSUE_COLOUR)
    columns = {"num_px": num_px, "tissue_px": _totals(tissue.astype(np.float32))}
    for name, plane in zip(CHANNELS, planes, strict=True):
        values = plane.astype(np.float32)
        columns[f"sum_{name}"] = _totals(values) - _WHITE * num_padding
        columns[f"squares_{name}"] = _totals(values * values) - _WHITE**2 * num_padding
        columns[f"od_{name}"] = _totals(_od_table()[plane] * tissue)
    columns["dim_lines"] = _dim_lines((grey < DIM_GREY) & (colour < MAX_DIM_COLOUR), sizes)
    return pd.DataFrame(columns).assign(hash=perceptual_hash(grey))


def _totals(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the sum of each picture of whole numbers: exact, since a row's is below 2**24."""
    rows = values @ np.ones(values.shape[-1], np.float32)
    return rows.sum(axis=-1, dtype=np.float64).astype(np.int64)


def _dim_lines(dim: NDArray[np.bool_], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the dim rows or columns of each patch, whichever are more."""
    height, width = sizes[:, :1], sizes[:, 1:]
    rows = (dim.sum(axis=2) >= DIM_SHARE_OF_LINE * width).sum(axis=1)
    cols = (dim.sum(axis=1) >= DIM_SHARE_OF_LINE * height).sum(axis=1)
    return np.maximum(rows, cols)


def _od_table() -> NDArray[np.float32]:
    """Return the optical density of the values 0..255; black counts as 1."""
    values = np.maximum(np.arange(256), 1)
    return np.rint(-np.log10(values / _WHITE) * OD_UNIT).astype(np.float32)
