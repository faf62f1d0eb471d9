"""Parsers of annotation files: QuPath GeoJSON, ASAP XML, Aperio ImageScope XML, Hamamatsu NDPA.

The content of a file decides about its format, not its name. Formats:

- GeoJSON: RFC 7946, with the classes of QuPath (``QuPathTypeAdapters`` in QuPath's source code).
- ASAP: ``XmlRepository`` in ASAP's source code. Camelyon16 and Camelyon17 use this format.
- ImageScope: regions of type 0 are freehand, 1 rectangles, 2 ellipses in the box of their vertices.
- NDPA: nanometers from the center of the glass (``NDPARepository`` in ASAP's source code).
"""

import gzip
import json
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import SlideError, first_line
from wsi_idc.core.files import regular_file

_MAX_BYTES = 512 * 10**6
_MAX_POINTS = 5_000_000  # about 1 GB of memory while a JSON file is parsed
_CHUNK_BYTES = 2**20
_GZIP = b"\x1f\x8b"
_FORMATS = "QuPath GeoJSON, ASAP XML, ImageScope XML or NDPA"
_ELLIPSE_POINTS = 256  # the polygon has 99.99 % of the area of the ellipse

Ring = NDArray[np.float64]  # shape (N, 2), x and y


@dataclass(frozen=True)
class Outline:
    """One outline with its coordinates as the file has them.

    Attributes:
        place: Place in the file, such as "feature 3".
        name: Class as written; "" without a class.
        polygons: Polygons; each is a list of rings, first the outer ring, then the holes.
        holes: Rings whose areas are subtracted from all polygons.
    """

    place: str
    name: str
    polygons: list[list[Ring]]
    holes: list[Ring] = field(default_factory=list)


@dataclass
class AnnotationFile:
    """Content of an annotation file.

    Attributes:
        format: "geojson", "asap", "imagescope" or "ndpa".
        outlines: Outlines that have an area.
        skipped: Number of other objects of each kind, such as points.
    """

    format: str
    outlines: list[Outline] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def parse_file(path: Path) -> AnnotationFile:
    """Parse an annotation file; a file with gzip compression is decompressed.

    Raises:
        SlideError: The file cannot be read, is too large, or its content is not valid.
    """
    data = _read(path)
    start = data[:64].lstrip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n")[:1]
    try:
        if start in (b"{", b"["):
            return _parse_geojson(data)
        if start == b"<":
            return _parse_xml(data)
    except json.JSONDecodeError as error:
        raise SlideError(
            f"{path}: damaged or cut short ({first_line(error)}); export the annotations again"
        ) from None
    except ElementTree.ParseError as error:
        raise SlideError(
            f"{path}: damaged or cut short ({first_line(error)}); export the annotations again"
        ) from None
    except RecursionError:
        raise SlideError(f"{path}: nested too deep; export the annotations again") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise SlideError(f"{path}: {first_line(error)}; export the annotations again") from None
    raise SlideError(f"{path}: not an annotation file; give {_FORMATS}")


def _read(path: Path) -> bytes:
    try:
        with regular_file(path, _MAX_BYTES).open("rb") as file:
            is_compressed = file.read(2) == _GZIP
            file.seek(0)
            if not is_compressed:
                return file.read()
            with gzip.open(file) as content:
                data = content.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise SlideError(f"{path}: no such file; give {_FORMATS}") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = first_line(error)
        raise SlideError(f"{path}: cannot be read ({reason}); give {_FORMATS}") from None
    if len(data) > _MAX_BYTES:
        raise SlideError(f"{path}: larger than {_MAX_BYTES / 1e6:g} MB; simplify the outlines")
    return data


def _check_points(num: int) -> None:
    if num > _MAX_POINTS:
        raise ValueError(f"more than {_MAX_POINTS:,} points; simplify the outlines")


# GeoJSON

_POLYGONS = ("Polygon", "MultiPolygon")
_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
# Objects that QuPath's algorithms made: "id" in version 0.2, "objectType" in later versions.
_DETECTIONS = (
    *("detection", "cell", "tile", "tmaCore", "tma_core", "root"),
    *("PathDetectionObject", "PathCellObject", "PathTileObject", "PathRootObject"),
)


def _parse_geojson(data: bytes) -> AnnotationFile:
    _check_points(data.count(b"["))  # each point has one bracket
    document = json.loads(data, object_hook=_compact)
    parsed = AnnotationFile("geojson")
    for number, feature in enumerate(_features(document), 1):
        place = f"feature {number}"
        if not isinstance(feature, dict):
            raise ValueError(f"{place} is not a GeoJSON object")
        properties = feature.get("properties") or {}
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
    """Yield features and geometries in the order of the file, with the children of features."""
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
    """Return the class of a feature; QuPath writes sub-classes as names, or as a parent class."""
    names: list[str] = []
    node = properties.get("classification")
    while isinstance(node, dict):
        names = [*(node.get("names") or [node.get("name")]), *names]
        node = node.get("parentClass")
    if isinstance(node, str):
        names = [node, *names]
    return ": ".join(str(name).strip() for name in names if name)


# XML


@dataclass
class _Node:
    """Element of an XML file; its elements of points are stored as numbers.

    Attributes:
        tag: Name of the element.
        attributes: Attributes of the element.
        children: Elements in this element, without points.
        points: Numbers x, y and order of each point.
        text: Text of the element.
    """

    tag: str
    attributes: dict[str, str]
    children: list["_Node"] = field(default_factory=list)
    points: "array[float]" = field(default_factory=lambda: array("d"))
    text: str = ""

    def all(self, *tags: str) -> list["_Node"]:
        """Return the elements at a path of tags."""
        nodes = [self]
        for tag in tags:
            nodes = [child for node in nodes for child in node.children if child.tag == tag]
        return nodes

    def value(self, tag: str, default: str = "") -> str:
        """Return the text of the first child with a tag."""
        return next((child.text.strip() for child in self.all(tag)), default)

    def ring(self) -> Ring:
        """Return the points in their order, which ASAP numbers; shape (N, 2)."""
        points = np.asarray(self.points, np.float64).reshape(-1, 3)
        return points[np.argsort(points[:, 2], kind="stable"), :2]


class _Builder:
    """Target of an XML parser; it refuses declarations, with which entities could be expanded."""

    def __init__(self) -> None:
        self._stack = [_Node("", {})]
        self._num_points = 0

    def doctype(self, *declaration: object) -> None:
        raise ValueError("the XML has a document type declaration, which no annotation file has")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag in ("Coordinate", "Vertex", "V"):
            self._add_point(attributes["X"], attributes["Y"], attributes.get("Order"))
            return
        node = _Node(tag, attributes)
        if tag != "point":
            self._stack[-1].children.append(node)
        self._stack.append(node)

    def data(self, text: str) -> None:
        self._stack[-1].text += text

    def end(self, tag: str) -> None:
        if tag in ("Coordinate", "Vertex", "V"):
            return
        node = self._stack.pop()
        if tag == "point":
            self._add_point(node.value("x"), node.value("y"), None)

    def _add_point(self, x: str, y: str, order: str | None) -> None:
        self._num_points += 1
        _check_points(self._num_points)
        points = self._stack[-1].points
        position = len(points) / 3 if order is None else float(order)
        points.extend((_number(x), _number(y), position))

    def close(self) -> _Node:
        return self._stack[0].children[0]


def _number(text: str) -> float:
    return float(text.replace(",", "."))  # some versions of ASAP write a decimal comma


def _parse_xml(data: bytes) -> AnnotationFile:
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        for start in range(0, len(data), _CHUNK_BYTES):
            parser.feed(data[start : start + _CHUNK_BYTES])
        root: Any = parser.close()
    except KeyError as error:
        raise ValueError(f"a point has no attribute {first_line(error)}") from None
    parse = {
        "ASAP_Annotations": _parse_asap,
        "Annotations": _parse_imagescope,
        "annotations": _parse_ndpa,
    }.get(root.tag)
    if parse is None:
        raise ValueError(f"the XML is of {root.tag!r} and not of annotations; give {_FORMATS}")
    return parse(root)


def _parse_asap(root: _Node) -> AnnotationFile:
    parsed = AnnotationFile("asap")
    for number, annotation in enumerate(root.all("Annotations", "Annotation"), 1):
        if annotation.attributes.get("Type") in ("Dot", "PointSet", "Measurement", "None"):
            parsed.skipped["points and lines"] += 1
            continue
        name = annotation.attributes.get("PartOfGroup", "").strip()
        rings = [node.ring() for node in annotation.all("Coordinates")]
        outline = Outline(
            f"annotation {number}", "" if name == "None" else name, [[ring] for ring in rings]
        )
        parsed.outlines.append(outline)
    return parsed


_AREA_TYPES = ("0", "1", "2", "Polygon", "Rectangle", "Ellipse")


def _parse_imagescope(root: _Node) -> AnnotationFile:
    parsed = AnnotationFile("imagescope")
    number = 0
    for layer in root.all("Annotation"):
        outlines: list[Outline] = []
        holes: list[Ring] = []
        for region in layer.all("Regions", "Region"):
            number += 1
            kind = region.attributes.get("Type", "0")
            if kind not in _AREA_TYPES:
                parsed.skipped["points and lines"] += 1
                continue
            ring = next((node.ring() for node in region.all("Vertices")), np.empty((0, 2)))
            if kind in ("2", "Ellipse") and len(ring):
                corners = ring.min(0), ring.max(0)
                ring = _ellipse((corners[0] + corners[1]) / 2, (corners[1] - corners[0]) / 2)
            elif len(ring) == 2:  # opposite corners of a rectangle
                (left, top), (right, bottom) = ring
                ring = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
            if region.attributes.get("NegativeROA") == "1":
                holes.append(ring)
            else:
                name = _layer_name(layer) or region.attributes.get("Text", "").strip()
                outlines.append(Outline(f"region {number}", name, [[ring]], holes))
        parsed.outlines += outlines
    return parsed


def _layer_name(layer: _Node) -> str:
    """Return the name of a layer; its attribute "Description" has the name in some files."""
    names = [layer.attributes.get("Name", "")]
    for attribute in layer.all("Attributes", "Attribute"):
        names.append(attribute.attributes.get("Value", ""))
        if (title := attribute.attributes.get("Name", "")) != "Description":
            names.append(title)
    return next((name.strip() for name in names if name.strip()), "")


def _ellipse(center: NDArray[np.float64], radius: NDArray[np.float64]) -> Ring:
    angle = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    return center + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


_NANOMETERS = {"nanometers": 1.0, "micrometers": 1e3, "millimeters": 1e6}


def _parse_ndpa(root: _Node) -> AnnotationFile:
    parsed = AnnotationFile("ndpa")
    for number, state in enumerate(root.all("ndpviewstate"), 1):
        unit = state.value("coordformat", "nanometers")
        if unit not in _NANOMETERS:
            raise ValueError(f"annotation {number} has coordinates in {unit!r}, not nanometers")
        name = state.value("title") or state.value("details")
        for annotation in state.all("annotation"):
            kind = annotation.attributes.get("type")
            if kind == "freehand" and annotation.value("closed", "1") != "0":
                rings = [node.ring() for node in annotation.all("pointlist")]
            elif kind == "circle":
                x, y, radius = (_number(annotation.value(tag)) for tag in ("x", "y", "radius"))
                rings = [_ellipse(np.array([x, y]), np.array([radius, radius]))]
            else:
                parsed.skipped["points and lines"] += 1
                continue
            polygons = [[ring * _NANOMETERS[unit]] for ring in rings]
            parsed.outlines.append(Outline(f"annotation {number}", name, polygons))
    return parsed
