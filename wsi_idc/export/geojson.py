"""Write patches and regions as GeoJSON for QuPath.

Format: https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html
The class ``QuPathTypeAdapters`` in the source code of QuPath defines each field. QuPath cannot read
NaN.
"""

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from wsi_idc.core.files import atomic_write
from wsi_idc.export.csv_table import patch_table
from wsi_idc.export.layers import LABEL_RGB
from wsi_idc.geometry.regions import extract_regions
from wsi_idc.maps.coordinates import GridTransform, grid_transform, stable_id
from wsi_idc.maps.patient_map import PatientMap

_IDC = 1  # label of IDC, and index of the class name
_SIGNIFICANT = 7  # significant digits of a float32
# Corners of a cell, clockwise on the screen. The first corner is repeated at the end.
_RING = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])


def write_geojson(
    patient_map: PatientMap,
    out: Path,
    *,
    threshold: float | None = None,
    coordinates: str = "qupath",
) -> None:
    """Write a tile for each patch and an annotation for each region of patches called IDC.

    A tile that is partly outside the slide is cut at the edge of the slide. A tile that is
    completely outside keeps its full size. A region with such a tile is not cut; all other regions
    are cut at the edge of the slide. ``source_file`` beside the features is the name of the slide
    or pack that the coordinates refer to; QuPath ignores it.

    Args:
        patient_map: The map.
        out: GeoJSON file to write; it is compressed if the name ends in ``.gz``.
        threshold: Lowest probability at which a patch is called IDC; None means the threshold of
            the map.
        coordinates: "qupath", "level0" or "image", as in ``grid_transform``.

    Raises:
        MapError: The corners of the patches are not on a grid.
    """
    threshold = patient_map.threshold if threshold is None else threshold
    transform = grid_transform(patient_map, coordinates)
    with atomic_write(out) as partial, ExitStack() as stack:
        file: Any = stack.enter_context(partial.open("wb"))
        if out.suffix == ".gz":
            # The gzip header has no name and no time, so that the same map gives the same bytes.
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        source_file = json.dumps(patient_map.source_file)
        head = f'{{"type": "FeatureCollection", "source_file": {source_file}, "features": ['
        file.write(head.encode())
        separator = b"\n"
        # Make one feature at a time: all features need many times the memory of the map.
        tiles = _tiles(patient_map, transform, threshold)
        for feature in chain(tiles, _annotations(patient_map, transform, threshold)):
            file.write(separator + json.dumps(feature, allow_nan=False).encode())
            separator = b",\n"
        file.write(b"\n]}\n")


def _tiles(
    patient_map: PatientMap, transform: GridTransform, threshold: float
) -> Iterator[dict[str, Any]]:
    numbers = patch_table(patient_map).astype(np.float64)
    cells = patient_map.row_col[:, ::-1]
    rings = transform.points(cells[:, None] + _RING)  # (N, 5, 2)
    on_slide = transform.is_on_slide(cells)
    rings[on_slide] = transform.clip(rings[on_slide])
    called = patient_map.probability >= threshold
    rows = zip(
        cells.tolist(), rings.tolist(), called.tolist(), numbers.to_dict("records"), strict=True
    )
    for (col, row), ring, is_idc, measured in rows:
        if measured["label"] < 0:
            del measured["label"]
        part = f"tile/{row}/{col}"
        yield _feature(patient_map, part, [ring], int(is_idc), measured, objectType="tile")


def _annotations(
    patient_map: PatientMap, transform: GridTransform, threshold: float
) -> Iterator[dict[str, Any]]:
    probability, idc = patient_map.probability_grid(), patient_map.class_names[_IDC]
    on_slide = patient_map.grid(patient_map.fraction_on_slide)
    regions = extract_regions(patient_map.called_grid(threshold))
    for number, region in enumerate(regions, start=1):
        row, col = region.cells[0].tolist()
        polygon = shapely.orient_polygons(region.polygon)
        rings = (polygon.exterior, *polygon.interiors)
        num_cells = on_slide[tuple(region.cells.T)].sum(dtype=np.float64)
        area = num_cells * (transform.side * transform.mpp) ** 2
        outlines = [transform.points(shapely.get_coordinates(ring)) for ring in rings]
        if transform.is_on_slide(region.cells[:, ::-1]).all():
            outlines = [transform.clip(outline) for outline in outlines]
        yield _feature(
            patient_map,
            f"region/{row}/{col}",
            # The outline is clockwise, like the tiles. The holes are counterclockwise.
            [outline.tolist() for outline in outlines],
            _IDC,
            {
                "area_um2": area,
                "area_mm2": area / 1e6,
                "num_patches": len(region.cells),
                f"mean_prob_{idc}": probability[tuple(region.cells.T)].mean(dtype=np.float64),
                "threshold": threshold,
            },
            objectType="annotation",
            name=f"{idc} {number}",
        )


def _feature(
    patient_map: PatientMap,
    part: str,
    rings: list[Any],
    label: int,
    measured: Mapping[Any, float],
    **properties: Any,
) -> dict[str, Any]:
    # Measurements are finite numbers, rounded to the digits of a float32.
    measurements = {
        name: float(f"{value:.{_SIGNIFICANT}g}")
        for name, value in measured.items()
        if math.isfinite(value)
    }
    name, color = patient_map.class_names[label], list(LABEL_RGB[label])
    properties["classification"] = {"name": name, "color": color}
    return {
        "type": "Feature",
        "id": stable_id(patient_map, part),
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {**properties, "measurements": measurements},
    }
