"""Layers of a map as pictures, painted one row of the grid at a time: PNG and OME-TIFF.

The files hold colors and not numbers: QuPath stretches the contrast of each single-channel picture
by itself, so the same probability would look different from patient to patient.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
import numpy as np
import tifffile
from PIL import Image, ImageColor

from wsi_idc import NOTICE
from wsi_idc.core.files import atomic_write, write_json
from wsi_idc.export.patch_table import grid_transform, stable_id
from wsi_idc.geometry.grid import scatter_to_grid
from wsi_idc.maps.layers import TOP_PERCENTILE, Layer, layers_of
from wsi_idc.maps.map_reader import ReadRows
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.raster import CLEAR, Pixels, colorize, downscale
from wsi_idc.plotting.style import LABEL_COLORS
from wsi_idc.runtime.prefetch import rebatch

# The standard deviation of numbers from 0 to 1 is at most 0.5.
MAX_DEVIATION = 0.5
# By label; LABEL_RGB[-1] is the color of the unknown label.
LABEL_RGB = tuple(ImageColor.getrgb(LABEL_COLORS[label])[:3] for label in (0, 1, -1))
# Pillow warns about a decompression bomb from about 89 million px on.
MAX_PX = 2**26
TILE_PX = 256
_UM_PER_CM = 10_000
# A classic TIFF holds at most 4 GiB; the pyramid adds a third.
_MAX_CLASSIC_BYTES = 2 * 2**30
_OPAQUE = 255


class LayerPicture:
    """A layer as a picture, transparent where there is no patch.

    Attributes:
        name: Name of the layer in file names.
        title: Name of the layer for people.
    """

    def __init__(self, layer: Layer, patient_map: PatientMap, read_rows: ReadRows | None) -> None:
        self.name = layer.name
        self.title = f"{layer.title}, {layer.note}" if layer.note else layer.title
        self._layer, self._read_rows, self._tissue_px = layer, read_rows, patient_map.cell_px
        row_col, shape = patient_map.row_col, patient_map.shape
        self._patches = scatter_to_grid(np.arange(len(row_col)), row_col, shape=shape, fill=-1)

    @property
    def scale(self) -> Mapping[str, Any]:
        """Meaning of the colors, JSON-ready."""
        layer = self._layer
        if layer.values is None:
            return {"kind": "rgb"}
        if layer.classes:
            classes = [
                {"label": label, "name": name, "colour": list(LABEL_RGB[label])}
                for label, name in layer.classes.items()
            ]
            return {"kind": "classes", "classes": classes}
        scale = {
            "kind": "colour map",
            "colour_map": f"matplotlib {layer.colormap}",
            "low": 0.0,
            "high": layer.vmax,
        }
        return scale | ({"top_percentile": TOP_PERCENTILE} if layer.name == "cam" else {})

    def paint_row(self, row: int, cell_px: int) -> Pixels:
        """Paint a row of the grid.

        Args:
            row: Number of the row.
            cell_px: Side of a cell in px.

        Returns:
            Red, green, blue and alpha, shape (cell_px, cols * cell_px, 4), transparent white where
            there is no patch.
        """
        patches, values = self._patches[row], self._layer.values
        if values is None:
            assert self._read_rows is not None
            strip = self._read_rows(row * self._tissue_px, (row + 1) * self._tissue_px)
            # Each row of cells is shrunk by itself, so that no cell is shifted.
            strip = downscale(strip, height=cell_px, width=len(patches) * cell_px)
            alpha = np.where(patches < 0, 0, _OPAQUE).astype(np.uint8)
            return np.dstack([strip, np.tile(alpha.repeat(cell_px), (cell_px, 1))])
        blocks = self._colors(values[patches])  # (cols, 4), a CAM: (cols, h, w, 4)
        blocks[patches < 0] = CLEAR
        if blocks.ndim == 2:
            return np.tile(blocks.repeat(cell_px, axis=0), (cell_px, 1, 1))
        # Each px takes the CAM pixel under its center, so that nothing is blended.
        down, across = (
            ((np.arange(cell_px) + 0.5) * side / cell_px).astype(int) for side in blocks.shape[1:3]
        )
        blocks = blocks[:, down][:, :, across]  # (cols, cell_px, cell_px, 4)
        return blocks.transpose(1, 0, 2, 3).reshape(cell_px, -1, 4)

    def _colors(self, values: Any) -> Pixels:
        if self._layer.classes:
            return np.array([(*color, _OPAQUE) for color in LABEL_RGB], np.uint8)[values]
        table = mpl.colormaps[self._layer.colormap](np.linspace(0, 1, 256), bytes=True)
        return colorize(values / self._layer.vmax, table)


def layer_pictures(patient_map: PatientMap, read_rows: ReadRows | None) -> list[LayerPicture]:
    """Return the layers of a map as pictures; the colors of all but the CAM compare patients.

    Args:
        patient_map: The map.
        read_rows: Reads its stitched tissue; None if the map has no image.
    """
    layers = layers_of(patient_map, has_tissue=read_rows is not None, uncertainty_max=MAX_DEVIATION)
    return [LayerPicture(layer, patient_map, read_rows) for layer in layers]


def cell_px_of(patient_map: PatientMap) -> int:
    """Return the side of a cell in the PNG files, an integer so that no cell is shifted.

    It is the side in the stitched tissue, or less if the picture would exceed ``MAX_PX``.
    """
    rows, cols = patient_map.shape
    return max(1, min(patient_map.cell_px, int((MAX_PX / (rows * cols)) ** 0.5)))


def write_png(patient_map: PatientMap, layer: LayerPicture, out: Path) -> None:
    """Write a layer, transparent where there is no patch."""
    cell_px = cell_px_of(patient_map)
    rows, cols = patient_map.shape
    picture = np.empty((rows * cell_px, cols * cell_px, 4), np.uint8)
    for row in range(rows):
        picture[row * cell_px : (row + 1) * cell_px] = layer.paint_row(row, cell_px)
    with atomic_write(out) as partial:
        # The lowest level takes a third of the default's time for 10 % more bytes.
        Image.fromarray(picture).save(partial, format="PNG", compress_level=1)


def write_legend(patient_map: PatientMap, layers: Mapping[Path, LayerPicture], out: Path) -> None:
    """Write the position of PNG files on the slide, and the meaning of their colors.

    Args:
        patient_map: The map.
        layers: PNG file to layer.
        out: The JSON file.
    """
    rows, cols = patient_map.shape
    cell_px, transform = cell_px_of(patient_map), grid_transform(patient_map)
    legend: dict[str, Any] = {
        "patient": patient_map.patient,
        "width_px": cols * cell_px,
        "height_px": rows * cell_px,
        "px_per_patch": cell_px,
        "um_per_px": patient_map.cell_px * patient_map.mpp / cell_px,
        "mpp_source": patient_map.mpp_source,
        # level-0 x = x0 + x * level0_px_per_px
        "level0": {
            "x0": transform.x,
            "y0": transform.y,
            "level0_px_per_px": transform.side / cell_px,
            "mpp": transform.mpp,
        },
        "threshold": patient_map.threshold,
        "layers": [
            {"name": layer.name, "file": path.name, "title": layer.title, **layer.scale}
            for path, layer in layers.items()
        ],
        "notice": NOTICE,
    }
    write_json(out, legend)


def write_ome_tiff(patient_map: PatientMap, layer: LayerPicture, out: Path) -> None:
    """Write a layer in px of the stitched tissue, white where there is no patch.

    Each level is half as large as the level before, odd sides rounded up, down to one tile of
    ``TILE_PX``. Levels are children of the first (SubIFDs), as OME-TIFF requires.
    """
    (rows, cols), cell_px = patient_map.shape, patient_map.cell_px
    sizes = _level_sizes(rows * cell_px, cols * cell_px)
    options: dict[str, Any] = {
        "subifds": len(sizes) - 1,
        "metadata": _metadata(patient_map, layer),
        "software": "wsi-idc",
    }
    big = sizes[0][0] * sizes[0][1] * 3 > _MAX_CLASSIC_BYTES
    with ExitStack() as stack:
        partial = stack.enter_context(atomic_write(out))
        writer = stack.enter_context(tifffile.TiffWriter(partial, ome=True, bigtiff=big))
        # RGB on white, a row of the grid at a time.
        strips: Iterator[Pixels] = (layer.paint_row(n, cell_px)[..., :3] for n in range(rows))
        for height, width in sizes:
            # The next level collects in a file while this one is written.
            next_level = stack.enter_context(tempfile.TemporaryFile(dir=out.parent))
            per_cm = _UM_PER_CM / patient_map.mpp * width / sizes[0][1]
            writer.write(
                _tiles(_halving(rebatch(strips, batch_size=TILE_PX), next_level)),
                shape=(height, width, 3),
                dtype=np.uint8,
                photometric="rgb",
                tile=(TILE_PX, TILE_PX),
                compression="zlib",
                # The lowest level takes a third of the default's time for 3 % more bytes.
                compressionargs={"level": 1},
                predictor=True,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                **options,
            )
            strips = _stored(next_level, (width + 1) // 2)
            # Bit 0 marks a smaller version of another page.
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
        "Name": f"{patient_map.patient} {layer.name}",
        "Description": f"{layer.title}. Colors: {json.dumps(dict(layer.scale))}. "
        f"{patient_map.mpp:g} um/px ({patient_map.mpp_source}). {NOTICE}",
        "PhysicalSizeX": patient_map.mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": patient_map.mpp,
        "PhysicalSizeYUnit": "µm",
    }


def _halving(strips: Iterable[Pixels], next_level: IO[bytes]) -> Iterator[Pixels]:
    """Pass strips on, and write each at half the size to ``next_level``."""
    for strip in strips:
        height, width, _ = strip.shape
        even = np.pad(strip, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        # Exactly half, so each px is the mean of 2 x 2 px.
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
