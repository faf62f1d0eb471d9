"""Outlines in XML: ASAP, Aperio ImageScope and Hamamatsu NDPA.

- ASAP: see the class ``XmlRepository`` in ASAP's source code. The Camelyon data sets use it.
- ImageScope: regions have type 0 (freehand), 1 (rectangle) or 2 (ellipse). The bounding box of the
  points is the bounding box of the ellipse. A region with ``NegativeROA="1"`` is a hole in the
  other regions of the layer.
- NDPA: coordinates are nanometers from the center of the glass; see ``NDPARepository`` in ASAP.
"""

from array import array
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import SlideError, first_line
from wsi_idc.slides.outlines import FORMATS, AnnotationFile, Outline, Ring, check_num_points

_CHUNK_BYTES = 2**20
_MAX_ELEMENTS = 1_000_000  # elements other than points
_MAX_TEXT = 1000  # characters of the text of an element
_MAX_SHOWN = 40  # characters of a wrong number in a message
_POINTS = ("Coordinate", "Vertex", "V")
_ELLIPSE_POINTS = 256  # the polygon has 99.99 % of the area of the ellipse


@dataclass
class _Node:
    """Element of an XML file. Points in the element are stored as numbers, not as elements.

    Attributes:
        tag: Name of the element.
        attributes: Attributes of the element.
        children: Elements in this element, except points.
        points: Numbers x, y and order of the first point, then of the second point, and so on.
        text: Text of the element.
    """

    tag: str
    attributes: dict[str, str]
    children: list["_Node"] = field(default_factory=list)
    points: "array[float]" = field(default_factory=lambda: array("d"))
    text: str = ""

    def all(self, *tags: str) -> list["_Node"]:
        """Return the elements on a path below this element; each of ``tags`` is one step down."""
        nodes = [self]
        for tag in tags:
            nodes = [child for node in nodes for child in node.children if child.tag == tag]
        return nodes

    def value(self, tag: str, default: str = "") -> str:
        """Return the text of the first child with this tag; ``default`` if there is no child."""
        return next((child.text.strip() for child in self.all(tag)), default)

    def ring(self) -> Ring:
        """Return x and y of the points, sorted by the number "Order" of ASAP, shape (N, 2)."""
        points = np.asarray(self.points, np.float64).reshape(-1, 3)
        return points[np.argsort(points[:, 2], kind="stable"), :2]


class _Builder:
    """Target of an XML parser that builds a tree of ``_Node`` objects.

    A document type declaration is refused, because its entities could fill the memory.
    """

    def __init__(self) -> None:
        self._stack = [_Node("", {})]
        self._num_points = 0
        self._num_elements = 0

    def doctype(self, *declaration: object) -> None:
        raise ValueError("the XML has a document type declaration, which no annotation file has")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag in _POINTS:
            self._add_point(attributes["X"], attributes["Y"], attributes.get("Order"))
            return
        node = _Node(tag, attributes)
        if tag != "point":
            self._stack[-1].children.append(node)
            self._num_elements += 1
            if self._num_elements > _MAX_ELEMENTS:
                raise SlideError(f"has more than {_MAX_ELEMENTS:,} elements; give {FORMATS}")
        self._stack.append(node)

    def data(self, text: str) -> None:
        node = self._stack[-1]
        if len(node.text) < _MAX_TEXT and not text.isspace():
            node.text += text

    def end(self, tag: str) -> None:
        if tag in _POINTS:
            return
        node = self._stack.pop()
        if tag == "point":
            self._num_elements -= len(node.children)
            self._add_point(node.value("x"), node.value("y"), None)

    def _add_point(self, x: str, y: str, order: str | None) -> None:
        self._num_points += 1
        check_num_points(self._num_points)
        points = self._stack[-1].points
        position = len(points) / 3 if order is None else _number(order)
        points.extend((_number(x), _number(y), position))

    def close(self) -> _Node:
        return self._stack[0].children[0]


def _number(text: str) -> float:
    try:
        return float(text.replace(",", "."))  # some versions of ASAP write a decimal comma
    except ValueError:
        raise ValueError(f"{text[:_MAX_SHOWN]!r} is not a coordinate") from None


def parse_xml(data: bytes) -> AnnotationFile:
    """Parse an ASAP, ImageScope or NDPA file; the root element gives the format.

    Raises:
        ValueError: An element is not valid.
        xml.etree.ElementTree.ParseError: The XML is not valid.
        SlideError: The file has too many points.
    """
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
        raise ValueError(f"the element {root.tag!r} is not the root of an annotation file")
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
    """Return the name of a layer; if the name is empty, a text from the layer's attributes."""
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
