"""Write layers of a map as pyramidal OME-TIFF files."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import tifffile

from wsi_idc import NOTICE
from wsi_idc.core.files import atomic_write
from wsi_idc.export.layers import LayerPicture
from wsi_idc.maps.coordinates import stable_id
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.raster import Pixels, downscale
from wsi_idc.runtime.prefetch import rebatch

TILE_PX = 256
_UM_PER_CM = 10_000
# Largest layer in a classic TIFF file; larger layers are written as BigTIFF. A classic TIFF file
# holds at most 4 GiB, and the smaller levels of the pyramid add a third to the layer.
_MAX_CLASSIC_BYTES = 2 * 2**30


def write_ome_tiff(patient_map: PatientMap, layer: LayerPicture, out: Path) -> None:
    """Write a layer at the resolution of the stitched tissue; cells without a patch are white.

    Each level of the pyramid has half the height and half the width of the level before, rounded
    up to integers. The last level fits into one tile of ``TILE_PX`` px. As OME-TIFF requires, the
    smaller levels are children (SubIFDs) of the first level.
    """
    (rows, cols), cell_px = patient_map.shape, patient_map.cell_px
    sizes = _level_sizes(rows * cell_px, cols * cell_px)
    options: dict[str, Any] = {"subifds": len(sizes) - 1, "software": "wsi-idc"}
    options["metadata"] = _metadata(patient_map, layer)
    big = sizes[0][0] * sizes[0][1] * 3 > _MAX_CLASSIC_BYTES
    with ExitStack() as stack:
        partial = stack.enter_context(atomic_write(out))
        writer = stack.enter_context(tifffile.TiffWriter(partial, ome=True, bigtiff=big))
        # The grid is painted as RGB, one row at a time. Cells without a patch are white.
        strips: Iterator[Pixels] = (layer.paint_row(n, cell_px)[..., :3] for n in range(rows))
        for height, width in sizes:
            # The pixels of the next level are collected in a file while this level is written.
            next_level = stack.enter_context(tempfile.TemporaryFile(dir=out.parent))
            per_cm = _UM_PER_CM / patient_map.mpp * width / sizes[0][1]
            writer.write(
                _tiles(_halving(rebatch(strips, batch_size=TILE_PX), next_level)),
                shape=(height, width, 3),
                dtype=np.uint8,
                photometric="rgb",
                tile=(TILE_PX, TILE_PX),
                compression="zlib",
                # Compression level 1 needs a third of the default's time, and 3 % more bytes.
                compressionargs={"level": 1},
                predictor=True,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                **options,
            )
            strips = _stored(next_level, (width + 1) // 2)
            # Bit 0 of ``subfiletype`` marks a smaller version of another page.
            options = {"subfiletype": 1, "metadata": None, "software": False}


def _level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    sizes = [(height, width)]
    while max(sizes[-1]) > TILE_PX:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _metadata(patient_map: PatientMap, layer: LayerPicture) -> dict[str, Any]:
    return {
        "UUID": stable_id(patient_map, layer.name),
        "Creator": "wsi-idc",
        "axes": "YXS",
        "Name": f"{patient_map.map_name} {layer.name}",
        "Description": f"{layer.title}. Colors: {json.dumps(dict(layer.scale))}. "
        f"{patient_map.mpp:g} um/px ({patient_map.mpp_source}). {NOTICE}",
        "PhysicalSizeX": patient_map.mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": patient_map.mpp,
        "PhysicalSizeYUnit": "µm",
    }


def _halving(strips: Iterable[Pixels], next_level: IO[bytes]) -> Iterator[Pixels]:
    """Yield the strips unchanged, and write each strip at half its size to ``next_level``."""
    for strip in strips:
        height, width, _ = strip.shape
        even = np.pad(strip, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        # Both sides are halved exactly, so each px of ``small`` is the mean of 2 x 2 px.
        small = downscale(even, height=(height + 1) // 2, width=(width + 1) // 2)
        next_level.write(small.tobytes())
        yield strip


def _stored(level: IO[bytes], width: int) -> Iterator[Pixels]:
    level.seek(0)
    while data := level.read(TILE_PX * width * 3):
        yield np.frombuffer(data, np.uint8).reshape(-1, width, 3)


def _tiles(strips: Iterable[Pixels]) -> Iterator[Pixels]:
    for strip in strips:
        for first in range(0, strip.shape[1], TILE_PX):
            yield strip[:, first : first + TILE_PX]
