"""Outlines in GeoJSON (RFC 7946), with classes as QuPath writes them.

The class ``QuPathTypeAdapters`` in QuPath's source code defines the properties of features.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from wsi_idc.slides.outlines import AnnotationFile, Outline, Ring, check_num_points

_MAX_VALUES = 4  # maximum number of values per point in a file
_POLYGONS = ("Polygon", "MultiPolygon")
_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
# Kinds of objects that QuPath's algorithms make. QuPath 0.2 writes the kind as the "id".
_DETECTIONS = (
    *("detection", "cell", "tile", "tmaCore", "tma_core", "root"),
    *("PathDetectionObject", "PathCellObject", "PathTileObject", "PathRootObject"),
)


def parse_geojson(data: bytes) -> AnnotationFile:
    """Parse a FeatureCollection, a list of features, one feature or one geometry.

    Raises:
        ValueError: The JSON or a feature is not valid; the message has the number of the feature.
        SlideError: The file has too many points.
    """
    check_num_points(data.count(b"["))  # each point has one bracket
    check_num_points(data.count(b",") // _MAX_VALUES)
    document = json.loads(data, object_hook=_compact)
    parsed = AnnotationFile("geojson")
    for number, feature in enumerate(_features(document), 1):
        place = f"feature {number}"
        if not isinstance(feature, dict):
            raise ValueError(f"{place} is not a GeoJSON object")
        properties = feature.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        kind = properties.get("objectType") or properties.get("object_type") or feature.get("id")
        if kind in _DETECTIONS:
            parsed.skipped["detections"] += 1
            continue
        geometry = feature.get("geometry") if feature.get("type") == "Feature" else feature
        polygons = []
        for part in _geometries(geometry, place):
            if part["type"] in _NO_AREA:
                parsed.skipped["points and lines"] += 1
            elif isinstance(part.get("coordinates"), list):
                polygons += part["coordinates"]
            else:
                raise ValueError(f"{place} has no valid coordinates")
        if polygons:
            parsed.outlines.append(Outline(place, _class_name(properties), polygons))
    return parsed


def _compact(node: dict[str, Any]) -> dict[str, Any]:
    """Replace the lists of numbers of a polygon by arrays, which need a tenth of the memory."""
    if node.get("type") in _POLYGONS:
        try:
            polygons = node["coordinates"]
            if node["type"] == "Polygon":
                polygons = [polygons]
            node["coordinates"] = [[_ring(ring) for ring in rings] for rings in polygons]
        except (KeyError, TypeError, ValueError, IndexError):
            node["coordinates"] = None
    return node


def _ring(points: list[list[float]]) -> Ring:
    if not points:
        return np.empty((0, 2))
    return np.asarray(points, np.float64)[:, :2].reshape(-1, 2).copy()


def _features(node: Any) -> Iterator[Any]:
    """Yield all features and geometries in the order of the file.

    A feature of QuPath can contain other features; these are also yielded.
    """
    if isinstance(node, list):
        for child in node:
            yield from _features(child)
    elif isinstance(node, dict) and node.get("type") == "FeatureCollection":
        yield from _features(node.get("features") or [])
    else:
        yield node
        if isinstance(node, dict) and isinstance(node.get("properties"), dict):
            properties = node["properties"]
            yield from _features(properties.get("childObjects") or properties.get("children") or [])


def _geometries(node: Any, place: str) -> Iterator[dict[str, Any]]:
    if node is None:
        return
    kind = node.get("type") if isinstance(node, dict) else None
    if kind == "GeometryCollection":
        for child in node.get("geometries") or []:
            yield from _geometries(child, place)
    elif kind in (*_POLYGONS, *_NO_AREA):
        yield node
    else:
        raise ValueError(f"{place} is not a geometry of GeoJSON")


def _class_name(properties: dict[str, Any]) -> str:
    """Return the class of a feature; "" if the feature has no class.

    QuPath writes a class such as "Tumor: IDC" as a list of two names, or as nested objects.
    """
    names: list[str] = []
    node = properties.get("classification")
    while isinstance(node, dict):
        parts = node.get("names")
        names = [*(parts if isinstance(parts, list) else [node.get("name")]), *names]
        node = node.get("parentClass")
    if isinstance(node, str):
        names = [node, *names]
    return ": ".join(str(name).strip() for name in names if name)
