"""Patches and regions for QuPath, as GeoJSON.

What QuPath reads of it: https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html
and, field by field, ``QuPathTypeAdapters`` in its source. It cannot read NaN as a number.
"""

import gzip
import json
import math
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from wsi_idc.core.files import atomic_write
from wsi_idc.export.coordinates import GridTransform, grid_key, grid_transform
from wsi_idc.export.csv_table import numbers_of
from wsi_idc.export.layers import LABEL_COLOURS
from wsi_idc.geometry.regions import Region, extract_regions
from wsi_idc.maps.patient_map import PatientMap

_IDC = 1  # its label, and the index of its name
# Any fixed UUID: the same patch has the same id in every export, and in no other program's.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "wsi-idc")
_UM2_PER_MM2 = 1e6
_SIGNIFICANT = 7  # digits that a float32 has
# The corners of a cell, clockwise on the screen and closed.
_RING = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])


def write_geojson(
    content: PatientMap,
    out: Path,
    *,
    threshold: float | None = None,
    coordinates: str = "level0",
) -> None:
    """Write a tile a patch and an annotation a region of patches called IDC.

    Args:
        content: The map.
        out: The file; what ends in ``.gz`` is compressed.
        threshold: Probability from which a patch is called IDC; None takes the map's.
        coordinates: As in ``grid_transform``.

    Raises:
        MapError: The corners of the patches are not on a grid.
    """
    threshold = content.threshold if threshold is None else threshold
    place = grid_transform(content, coordinates)
    with atomic_write(out) as partial, partial.open("wb") as raw:
        if out.suffix == ".gz":
            # Neither name nor time, so that the same map gives the same bytes.
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
                _write(file, content, place, threshold)
        else:
            _write(raw, content, place, threshold)


def _write(file: Any, content: PatientMap, place: GridTransform, threshold: float) -> None:
    """Write a feature at a time: all of them in memory would be many times the map."""
    file.write(b'{"type": "FeatureCollection", "features": [')
    between = b"\n"
    for features in (_tiles, _annotations):
        for feature in features(content, place, threshold):
            file.write(between + json.dumps(feature, allow_nan=False).encode())
            between = b",\n"
    file.write(b"\n]}\n")


def _tiles(content: PatientMap, place: GridTransform, threshold: float) -> Iterator[dict[str, Any]]:
    numbers = numbers_of(content).astype(np.float64)
    cells = content.row_col[:, ::-1]
    rings = place.points(cells[:, None] + _RING).tolist()  # (N, 5, 2)
    called = content.probability >= threshold
    grid = grid_key(content)
    rows = zip(cells.tolist(), rings, called.tolist(), numbers.to_dict("records"), strict=True)
    for (col, row), ring, is_idc, measured in rows:
        if measured["label"] < 0:
            del measured["label"]
        yield _feature(
            f"{grid}/tile/{row}/{col}",
            [ring],
            objectType="tile",
            classification=_classification(content, int(is_idc)),
            measurements=_finite(measured),
        )


def _annotations(
    content: PatientMap, place: GridTransform, threshold: float
) -> Iterator[dict[str, Any]]:
    probability, idc = content.probability_grid(), content.class_names[_IDC]
    grid = grid_key(content)
    for number, region in enumerate(extract_regions(probability >= threshold), start=1):
        row, col = region.cells[0].tolist()
        yield _feature(
            f"{grid}/region/{row}/{col}",
            _rings(region, place),
            objectType="annotation",
            name=f"{idc} {number}",
            classification=_classification(content, _IDC),
            measurements=_finite(
                {
                    **_measure(region, place),
                    f"mean_prob_{idc}": probability[tuple(region.cells.T)].mean(dtype=np.float64),
                    "threshold": threshold,
                }
            ),
        )


def _rings(region: Region, place: GridTransform) -> list[Any]:
    """Return outline and holes in px, the outline as the corners of tiles turn."""
    polygon = shapely.orient_polygons(region.polygon)
    return [
        place.points(shapely.get_coordinates(ring)).tolist()
        for ring in (polygon.exterior, *polygon.interiors)
    ]


def _measure(region: Region, place: GridTransform) -> dict[str, float]:
    area = len(region.cells) * (place.side * place.mpp) ** 2
    return {
        "area_um2": area,
        "area_mm2": area / _UM2_PER_MM2,
        "num_patches": len(region.cells),
    }


def _feature(key: str, rings: list[Any], /, **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, key)),
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": properties,
    }


def _classification(content: PatientMap, label: int) -> dict[str, Any]:
    return {"name": content.class_names[label], "color": list(LABEL_COLOURS[label])}


def _finite(measured: Mapping[Any, float]) -> dict[str, float]:
    """Return the numbers that are some, to the digits they have."""
    return {
        name: float(f"{value:.{_SIGNIFICANT}g}")
        for name, value in measured.items()
        if math.isfinite(value)
    }
