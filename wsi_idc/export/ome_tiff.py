"""Layers as pyramidal OME-TIFF, in memory a strip at a time.

Overlays are colours, not numbers: QuPath stretches the contrast of each single-channel picture by
itself, and the same probability would look different from patient to patient.
"""

import json
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_idc import NOTICE
from wsi_idc.core.files import atomic_write
from wsi_idc.export.coordinates import grid_key
from wsi_idc.export.layers import Layer
from wsi_idc.maps.patient_map import PatientMap

TILE_PX = 256
_UM_PER_CM = 10_000
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "wsi-idc")
# A classic TIFF ends at 4 GiB; the pyramid adds a third.
_MAX_CLASSIC_BYTES = 2 * 2**30


def write_ome_tiff(content: PatientMap, layer: Layer, out: Path) -> None:
    """Write a layer, a px of it for each px of the stitched tissue, white where there is no patch.

    Each level is half the last one, an odd edge rounded up so that no px is lost, down to one
    block of ``TILE_PX``. Levels are children of the first (SubIFDs), as OME-TIFF wants them.
    """
    rows, cols = content.shape
    sizes = _level_sizes(rows * content.cell_px, cols * content.cell_px)
    options: dict[str, Any] = {
        "subifds": len(sizes) - 1,
        "metadata": _metadata(content, layer),
        "software": "wsi-idc",
    }
    num_bytes = sizes[0][0] * sizes[0][1] * 3
    with ExitStack() as stack:
        partial = stack.enter_context(atomic_write(out))
        big = num_bytes > _MAX_CLASSIC_BYTES
        writer = stack.enter_context(tifffile.TiffWriter(partial, ome=True, bigtiff=big))
        strips = _painted(content, layer)
        for height, width in sizes:
            # The next level grows on disk while this one is written.
            grown = stack.enter_context(tempfile.TemporaryFile(dir=out.parent))
            per_cm = _UM_PER_CM / content.mpp * width / sizes[0][1]
            writer.write(
                _tiles(_halving(_cut(strips), grown)),
                shape=(height, width, 3),
                dtype=np.uint8,
                photometric="rgb",
                tile=(TILE_PX, TILE_PX),
                compression="zlib",
                # A third of the usual level's time for 3 % more bytes.
                compressionargs={"level": 1},
                predictor=True,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                **options,
            )
            strips = _stored(grown, (width + 1) // 2)
            # Bit 0: a smaller version of another page.
            options = {"subfiletype": 1, "metadata": None, "software": False}


def _level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return height and width of each level in px."""
    sizes = [(height, width)]
    while max(sizes[-1]) > TILE_PX:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _metadata(content: PatientMap, layer: Layer) -> dict[str, Any]:
    """Return what the OME-XML says."""
    name = f"{content.patient} {layer.name}"
    return {
        "UUID": str(uuid.uuid5(_NAMESPACE, f"{grid_key(content)}/{layer.name}")),
        "Creator": "wsi-idc",
        "axes": "YXS",
        "Name": name,
        "Description": f"{layer.title}. Colours: {json.dumps(dict(layer.scale))}. "
        f"{content.mpp:g} um/px ({content.mpp_source}). {NOTICE}",
        "PhysicalSizeX": content.mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": content.mpp,
        "PhysicalSizeYUnit": "µm",
    }


def _painted(content: PatientMap, layer: Layer) -> Iterator[NDArray[np.uint8]]:
    """Yield the layer a row of the grid at a time, shape (cell_px, width, 3), on white."""
    for row in range(content.shape[0]):
        yield layer.paint_row(row, content.cell_px)[..., :3]


def _cut(strips: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Yield the same picture in strips of ``TILE_PX`` rows of px, the last one with the rest."""
    waiting: list[NDArray[np.uint8]] = []
    for strip in strips:
        waiting.append(strip)
        if sum(map(len, waiting)) < TILE_PX:
            continue
        joined = np.concatenate(waiting)
        whole = len(joined) // TILE_PX * TILE_PX
        for first in range(0, whole, TILE_PX):
            yield joined[first : first + TILE_PX]
        waiting = [joined[whole:]] if whole < len(joined) else []
    if waiting:
        yield np.concatenate(waiting)


def _halving(strips: Iterable[NDArray[np.uint8]], grown: IO[bytes]) -> Iterator[NDArray[np.uint8]]:
    """Pass strips on, and write what they are at half the size to ``grown``."""
    for strip in strips:
        height, width, _ = strip.shape
        even = cv2.copyMakeBorder(strip, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        size = ((width + 1) // 2, (height + 1) // 2)
        # At exactly half, the mean of each 2 x 2 px.
        grown.write(cv2.resize(even, size, interpolation=cv2.INTER_AREA).tobytes())
        yield strip


def _stored(grown: IO[bytes], width: int) -> Iterator[NDArray[np.uint8]]:
    grown.seek(0)
    while data := grown.read(TILE_PX * width * 3):
        yield np.frombuffer(data, np.uint8).reshape(-1, width, 3)


def _tiles(strips: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    for strip in strips:
        for first in range(0, strip.shape[1], TILE_PX):
            yield strip[:, first : first + TILE_PX]
