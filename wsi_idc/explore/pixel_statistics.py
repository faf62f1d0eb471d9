"""Compute statistics of every patch of a pack. The pixels of the pack are read once.

All statistics are sums of integers, so the same pack gives the same numbers on any machine and with
any number of threads. Padding is left out.
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

# Glass has a gray value of about 240 in this data set. Tissue is darker than glass and has color.
# Dirt, ink and the edge of the glass are darker than glass and have no color.
GLASS_GRAY = 220
MIN_TISSUE_COLOR = 20
DIM_GRAY = 200
MAX_DIM_COLOR = 30
DIM_SHARE_OF_LINE = 0.9

OD_UNIT = 1000  # optical density is summed in integer thousandths
_WHITE = 255
# Optical density of each value from 0 to 255. Value 0 gets the density of value 1.
_DENSITY = -np.log10(np.maximum(np.arange(256), 1) / _WHITE)
_OPTICAL_DENSITY = np.rint(_DENSITY * OD_UNIT).astype(np.float32)
_PATCHES_AT_A_TIME = 512
_HASH_SIDE = 8
# The cosines of the hash are integers: sums are exact, and signs are equal on all machines.
_COSINE_UNIT = 1024


@dataclass(frozen=True)
class PixelStatistics:
    """Statistics of the pixels of a pack.

    Attributes:
        table: One row per patch, in the order of the pack. Columns: ``num_px``, number of pixels
            without padding; ``sum_*``, sum of the values (0 to 255) of a channel; ``squares_*``,
            sum of the squared values of a channel; ``tissue_px``, number of pixels of stained
            tissue; ``od_*``, sum of the optical density of the stained tissue in a channel, in
            thousandths; ``dim_lines``, number of pixel rows in which almost all pixels are gray,
            or number of such pixel columns if this is larger; ``hash``, result of
            ``perceptual_hash``.
        mean_patches: For each label, the mean of the patches of full size, shape (h, w, 3), values
            from 0 to 1. Labels without a patch of full size are left out.
    """

    table: pd.DataFrame
    mean_patches: dict[int, NDArray[np.float64]]


def pixel_statistics(pack: Pack) -> PixelStatistics:
    """Compute the statistics of every patch of a pack.

    Raises:
        DataError: The pack is truncated or replaced while it is read.
    """
    side = pack.info.patch_px
    sizes = pack.index[["height", "width"]].to_numpy(np.int64)
    labels = pack.index["label"].to_numpy()
    is_full = (sizes == side).all(axis=1)
    tables = []
    sums = np.zeros((3, len(LABELS), side * side))  # (channel, label, pixel)
    with progress(len(pack), what="measuring") as bar:
        for start, block in _blocks(pack):
            rows = slice(start, start + len(block))
            for row in np.flatnonzero(~is_full[rows]):
                height, width = sizes[start + row]
                block[row, height:] = block[row, :, width:] = _WHITE
            planes = np.ascontiguousarray(block.transpose(3, 0, 1, 2))  # (3, N, h, w)
            tables.append(_block_table(block, planes, sizes[rows]))
            has_label = (labels[rows] == np.array(LABELS)[:, None]) & is_full[rows]
            flat = planes.reshape(3, len(block), -1).astype(np.float32)
            sums += has_label.astype(np.float32) @ flat  # exact, because sums are below 2**24
            bar.update(len(block))
    mean_patches = {}
    for position, label in enumerate(LABELS):
        if num := int(((labels == label) & is_full).sum()):
            mean_patches[label] = (sums[:, position].T / (num * _WHITE)).reshape(side, side, 3)
    return PixelStatistics(pd.concat(tables, ignore_index=True), mean_patches)


def perceptual_hash(gray: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Compute a hash of each image. Near-identical images have equal or similar hashes.

    The bits are the signs of the 8 x 8 coefficients with the lowest frequencies in the discrete
    cosine transform. The coefficient of the mean has no bit. A change of brightness or contrast
    does not change the hash. A shift, a rotation or a flip of the image changes the hash.

    ``gray`` has the shape (N, side, side). The result has the shape (N,) and the type uint64, with
    63 bits per hash. The hash of an image of only one color is 0.
    """
    side = gray.shape[-1]
    angle = np.pi / side * np.outer(np.arange(_HASH_SIDE), np.arange(side) + 0.5)
    cosines = np.rint(np.cos(angle) * _COSINE_UNIT)  # (8, side)
    low = cosines @ gray.astype(np.float64) @ cosines.T  # (N, 8, 8), integers below 2**53
    # The sum of the rounded cosines is not exactly 0: subtract the coefficients of a uniform image.
    total = cosines.sum(axis=1)
    flat = gray.sum(axis=(1, 2), dtype=np.float64)[:, None, None] * np.outer(total, total)
    bits = (low > flat / side**2).reshape(len(gray), -1)
    bits[:, 0] = False
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def _blocks(pack: Pack) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Read the pack in blocks; yield the position of the first patch, and the pixels of a block.

    The pixels are read from the file, not from the memory map. The pages of a memory map count as
    memory of the process: in a job, the complete pack would count towards the memory limit.
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
                reason = "the pack was truncated while it was read"
                raise DataError(f"{pack.file}: {reason}; run wsi-idc prepare again")
            yield start, block.reshape(num, *shape)


def _block_table(
    block: NDArray[np.uint8], planes: NDArray[np.uint8], sizes: NDArray[np.int64]
) -> pd.DataFrame:
    side, num_px = block.shape[1], sizes.prod(axis=1)
    num_padding = side * side - num_px
    gray = cv2.cvtColor(block.reshape(-1, side, 3), cv2.COLOR_RGB2GRAY).reshape(-1, side, side)
    highest = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
    color = highest - np.minimum(np.minimum(planes[0], planes[1]), planes[2])
    is_tissue = (gray < GLASS_GRAY) & (color >= MIN_TISSUE_COLOR)
    columns = {"num_px": num_px, "tissue_px": _totals(is_tissue.astype(np.float32))}
    for name, plane in zip(CHANNELS, planes, strict=True):
        values = plane.astype(np.float32)
        columns[f"sum_{name}"] = _totals(values) - _WHITE * num_padding
        columns[f"squares_{name}"] = _totals(values * values) - _WHITE**2 * num_padding
        columns[f"od_{name}"] = _totals(_OPTICAL_DENSITY[plane] * is_tissue)
    is_dim, min_dim = (gray < DIM_GRAY) & (color < MAX_DIM_COLOR), DIM_SHARE_OF_LINE * sizes
    rows = (is_dim.sum(axis=2) >= min_dim[:, 1:]).sum(axis=1)
    cols = (is_dim.sum(axis=1) >= min_dim[:, :1]).sum(axis=1)
    columns["dim_lines"] = np.maximum(rows, cols)
    return pd.DataFrame(columns).assign(hash=perceptual_hash(gray))


def _totals(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Sum the integers of each image. The sum of a row is below 2**24, so float32 is exact."""
    rows = values @ np.ones(values.shape[-1], np.float32)
    return rows.sum(axis=-1, dtype=np.float64).astype(np.int64)
