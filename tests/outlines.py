"""Outlines on a slide, files of them as the programs write them, and their raster."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.path
import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """One outline: its class, its outer ring (not closed) and the rings of its holes."""

    name: str
    ring: Sequence[Point]
    holes: Sequence[Sequence[Point]] = field(default=())

    def rings(self) -> list[list[Point]]:
        """Return all rings, closed."""
        return [[*ring, ring[0]] for ring in (self.ring, *self.holes)]


def rectangle(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """Return the corners of a rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def star(x: float, y: float, radius: float, *, seed: int, num: int = 24) -> list[Point]:
    """Return a ring of random radius around a point."""
    rng = np.random.default_rng(seed)
    angle = np.arange(num) * 2 * np.pi / num
    far = radius * rng.uniform(0.5, 1.2, num)
    points = np.stack([x + far * np.cos(angle), y + far * np.sin(angle)], axis=1)
    return [(float(a), float(b)) for a, b in points.round(2)]


def feature(shape: Shape) -> dict:
    """Return an outline as QuPath 0.5 writes a feature."""
    names = shape.name.split(": ")
    names = {"name": names[0]} if len(names) == 1 else {"names": names}
    properties = {"objectType": "annotation", "isLocked": True}
    if shape.name:
        properties["classification"] = {**names, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": "8b1c3f7e-0000-4000-8000-000000000000",
        "geometry": {"type": "Polygon", "coordinates": shape.rings()},
        "properties": properties,
    }


def write_geojson(path: Path, shapes: Sequence[Shape]) -> Path:
    """Write a FeatureCollection; a name that ends with .gz is compressed."""
    collection = {"type": "FeatureCollection", "features": [feature(shape) for shape in shapes]}
    data = json.dumps(collection).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_asap(path: Path, shapes: Sequence[Shape]) -> Path:
    """Write the XML of ASAP, which has no holes."""
    annotations = []
    for number, shape in enumerate(shapes):
        assert not shape.holes
        points = "".join(
            f'<Coordinate Order="{i}" X="{x}" Y="{y}" />\n' for i, (x, y) in enumerate(shape.ring)
        )
        kind = "Rectangle" if len(shape.ring) == 4 else "Polygon"
        annotations.append(
            f'<Annotation Name="Annotation {number}" Type="{kind}" '
            f'PartOfGroup="{shape.name or "None"}" Color="#F4FA58">'
            f"<Coordinates>\n{points}</Coordinates></Annotation>"
        )
    groups = "".join(
        f'<Group Name="{name}" PartOfGroup="None" Color="#64FE2E"><Attributes /></Group>'
        for name in sorted({shape.name for shape in shapes if shape.name})
    )
    path.write_text(
        f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>{"".join(annotations)}'
        f"</Annotations><AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>"
    )
    return path


def write_imagescope(path: Path, shapes: Sequence[Shape]) -> Path:
    """Write the XML of ImageScope: a layer for each shape, holes as negative regions."""
    layers = []
    for number, shape in enumerate(shapes, 1):
        regions = []
        for i, ring in enumerate((shape.ring, *shape.holes)):
            points = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ring)
            regions.append(
                f'<Region Id="{i + 1}" Type="0" Zoom="0.5" Selected="0" ImageLocation="" '
                f'Text="" NegativeROA="{int(i > 0)}" InputRegionId="0" Analyze="1" DisplayId="1">'
                f"<Attributes/><Vertices>{points}</Vertices></Region>"
            )
        layers.append(
            f'<Annotation Id="{number}" Name="{shape.name}" ReadOnly="0" Type="4" '
            f'LineColor="65280" Visible="1"><Attributes><Attribute Name="Description" Id="0" '
            f'Value=""/></Attributes><Regions><RegionAttributeHeaders>'
            f'<AttributeHeader Id="9999" Name="Region" ColumnWidth="-1"/>'
            f"</RegionAttributeHeaders>{''.join(regions)}</Regions><Plots/></Annotation>"
        )
    path.write_text(f'<Annotations MicronsPerPixel="0.25">{"".join(layers)}</Annotations>')
    return path


# An NDPI slide: offset of its center from the center of the glass, and size of its px.
NDPI = {
    "hamamatsu.XOffsetFromSlideCentre": "-1234567",
    "hamamatsu.YOffsetFromSlideCentre": "765432",
    "openslide.mpp-x": "0.4564",
    "openslide.mpp-y": "0.4551",
}


def write_ndpa(path: Path, shapes: Sequence[Shape], *, size: tuple[int, int]) -> Path:
    """Write the NDPA file of a slide with the properties ``NDPI``."""
    states = []
    for number, shape in enumerate(shapes, 1):
        assert not shape.holes
        points = ""
        for x, y in shape.ring:
            x_nm = (x - size[0] / 2) * 456.4 - 1234567
            y_nm = (y - size[1] / 2) * 455.1 + 765432
            points += f"<point>\n<x>{round(x_nm)}</x>\n<y>{round(y_nm)}</y>\n</point>"
        states.append(
            f'<ndpviewstate id="{number}"><title>{shape.name}</title><details/>'
            f"<coordformat>nanometers</coordformat><lens>1</lens><x>0</x><y>0</y><z>0</z>"
            f'<showtitle>0</showtitle><annotation type="freehand" displayname="AnnotateFreehand" '
            f'color="#000000"><measuretype>0</measuretype><closed>1</closed>'
            f"<pointlist>{points}</pointlist></annotation></ndpviewstate>"
        )
    path.write_text(
        '<?xml version="1.0" encoding="utf-8" standalone="yes"?>\n'
        f"<annotations>{''.join(states)}</annotations>"
    )
    return path


def rasterize(shape: Shape, *, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the px of a slide whose centers are in a shape, computed by matplotlib."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    centers = np.stack([x.ravel(), y.ravel()], axis=1)
    inside, *holes = (
        matplotlib.path.Path(ring, closed=True).contains_points(centers) for ring in shape.rings()
    )
    for hole in holes:
        inside &= ~hole
    return inside.reshape(y.shape)
