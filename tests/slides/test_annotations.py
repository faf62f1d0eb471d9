import gzip
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import shapely

from tests.outlines import (
    NDPI,
    Shape,
    feature,
    rectangle,
    star,
    write_asap,
    write_geojson,
    write_imagescope,
    write_ndpa,
)
from wsi_idc.core.errors import DataError, SlideError
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.slides import outlines
from wsi_idc.slides.annotations import (
    Annotation,
    check_classes,
    class_table,
    read_annotations,
    target_of,
)

SIZE = (2000, 1000)
SQUARE = Shape("Tumor", rectangle(100, 200, 300, 400))
WITH_HOLE = Shape("Tumor: IDC", rectangle(1000, 100, 1900, 900), [star(1300, 400, 90, seed=1)])
STAR = Shape("Stroma", star(500, 500, 200, seed=2))
NO_CLASS = Shape("", rectangle(700, 10, 800, 90))
ALL = [SQUARE, WITH_HOLE, STAR, NO_CLASS]


def polygon(shape: Shape) -> shapely.Polygon:
    return shapely.Polygon(shape.ring, shape.holes)


def read(path: Path, **arguments) -> list[Annotation]:
    return read_annotations(path, **{"size": SIZE, **arguments})


def save(path: Path, content: object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def assert_is(annotations: list[Annotation], shapes: list[Shape], *, within: float = 0) -> None:
    """Check classes, and that the areas differ by at most a fraction."""
    assert [item.name for item in annotations] == [shape.name for shape in shapes]
    for item, shape in zip(annotations, shapes, strict=True):
        assert item.geometry.is_valid
        expected = polygon(shape)
        difference = item.geometry.symmetric_difference(expected).area
        assert difference <= within * expected.area


# Formats


@pytest.mark.parametrize("name", ["a.geojson", "a.json", "a.geojson.gz", "no-suffix"])
def test_geojson_as_a_collection(tmp_path, name):
    assert_is(read(write_geojson(tmp_path / name, ALL)), ALL)


def geojson_forms() -> dict[str, object]:
    one = feature(SQUARE)
    return {
        "list": [one],
        "feature": one,
        "geometry": one["geometry"],
        "children": {
            "type": "Feature",
            "geometry": None,
            "properties": {"objectType": "root", "childObjects": [one]},
        },
        "collection of geometries": {
            **one,
            "geometry": {"type": "GeometryCollection", "geometries": [one["geometry"]]},
        },
        "multipolygon": {
            **one,
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [one["geometry"]["coordinates"]],
            },
        },
        "third coordinate": {
            **one,
            "geometry": {"type": "Polygon", "coordinates": [[[*p, 0.0] for p in SQUARE.ring]]},
        },
    }


@pytest.mark.parametrize("form", geojson_forms())
def test_other_forms_of_geojson(tmp_path, form):
    (item,) = read(save(tmp_path / "a.geojson", geojson_forms()[form]))
    assert item.name == ("" if form == "geometry" else "Tumor")
    assert item.geometry.equals(polygon(SQUARE))


def test_geojson_with_a_byte_order_mark(tmp_path):
    text = json.dumps([feature(SQUARE)])
    assert_is(read(save(tmp_path / "a.json", b"\xef\xbb\xbf" + text.encode())), [SQUARE])


@pytest.mark.parametrize(
    "classification,name",
    [
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor"),  # QuPath 0.2 and 0.3
        ({"name": "Tumor: IDC", "color": [200, 0, 0]}, "Tumor: IDC"),  # QuPath 0.4
        ({"names": ["Tumor", "IDC"], "color": [200, 0, 0]}, "Tumor: IDC"),  # QuPath 0.5
        ({"name": "IDC", "parentClass": {"name": "Tumor", "colorRGB": 1}}, "Tumor: IDC"),
        ("Tumor", "Tumor"),
        ({}, ""),
        (None, ""),
    ],
)
def test_classes_of_qupath(tmp_path, classification, name):
    content = {**feature(SQUARE), "properties": {"classification": classification}}
    assert [item.name for item in read(save(tmp_path / "a.json", content))] == [name]


def test_points_lines_and_detections_are_skipped_with_one_warning(tmp_path, caplog):
    kinds = ["Point", "MultiPoint", "LineString"]
    features = [
        {"type": "Feature", "geometry": {"type": kind, "coordinates": []}, "properties": {}}
        for kind in kinds
    ]
    features.append({**feature(SQUARE), "properties": {"objectType": "cell"}})
    features.append({**feature(SQUARE), "id": "PathDetectionObject", "properties": {}})
    features.append(feature(Shape("Tumor", [(1, 1), (2, 2)])))
    features.append(feature(Shape("Tumor", [(1, 1), (2, 2), (3, 3)])))
    features.append(feature(SQUARE))
    path = save(tmp_path / "a.geojson", features)
    assert_is(read(path), [SQUARE])
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: skipped 3 points and lines, 2 detections, 2 outlines without an area; only "
        "outlines with an area are used"
    ]


@pytest.mark.parametrize("content", [[], {"type": "FeatureCollection", "features": []}])
def test_a_file_may_have_no_outline(tmp_path, content):
    assert read(save(tmp_path / "a.geojson", content), bounds=Bounds(1, 1, 9, 9)) == []


def test_asap(tmp_path):
    triangle = Shape("_1", [(0, 0), (90, 0), (0, 90)])
    shapes = [SQUARE, STAR, NO_CLASS, Shape("_0", rectangle(0, 0, 50.5, 60.25)), triangle]
    assert_is(read(write_asap(tmp_path / "a.xml", shapes)), shapes)


def test_asap_points_have_an_order_and_may_have_a_decimal_comma(tmp_path):
    points = [(3, "0", "90,5"), (1, "90,5", "0"), (2, "90,5", "90,5"), (0, "0", "0")]
    coordinates = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, x, y in points)
    text = (
        '<ASAP_Annotations><Annotations><Annotation Type="Spline" PartOfGroup="metastases">'
        f"<Coordinates>{coordinates}</Coordinates></Annotation>"
        '<Annotation Type="Dot" PartOfGroup="x"><Coordinates><Coordinate Order="0" X="1" Y="2"/>'
        "</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    shape = Shape("metastases", rectangle(0, 0, 90.5, 90.5))
    assert_is(read(save(tmp_path / "a.xml", text)), [shape])


def test_imagescope(tmp_path):
    assert_is(read(write_imagescope(tmp_path / "a.xml", ALL)), ALL, within=1e-12)


def imagescope(*regions: str, name: str = "Tumor", attributes: str = "") -> str:
    return (
        f'<Annotations MicronsPerPixel="0.5"><Annotation Id="1" Name="{name}"><Attributes>'
        f"{attributes}</Attributes><Regions>{''.join(regions)}</Regions></Annotation></Annotations>"
    )


def region(*points: tuple[float, float], **attributes: object) -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in points)
    keys = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f"<Region{keys}><Vertices>{vertices}</Vertices></Region>"


def test_imagescope_ellipse_rectangle_and_hole(tmp_path):
    regions = [
        region((100, 100), (500, 300), Type=2),  # corners of the box of the ellipse
        region((600, 100), (700, 400), Type=1),
        region(*rectangle(1000, 0, 1500, 500), Type=0),
        region((650, 350), (1100, 450), Type=1, NegativeROA=1),
        region((1, 1), (2, 2), Type=3),  # an arrow
    ]
    ellipse, box, freehand = read(save(tmp_path / "a.xml", imagescope(*regions)))
    assert ellipse.geometry.area == pytest.approx(np.pi * 200 * 100, rel=2e-4)
    assert ellipse.geometry.bounds == pytest.approx((100, 100, 500, 300))
    assert box.geometry.area == 100 * 300 - 50 * 50
    assert freehand.geometry.area == 500 * 500 - 100 * 100


@pytest.mark.parametrize(
    "name,attributes,text,expected",
    [
        ("Tumor", '<Attribute Name="Description" Value="other"/>', "note", "Tumor"),
        ("", '<Attribute Name="Description" Value="Tumor"/>', "note", "Tumor"),
        ("", '<Attribute Name="Tumor" Value=""/>', "note", "Tumor"),
        ("", '<Attribute Name="Description" Value=""/>', "Tumor", "Tumor"),
        ("", "", "", ""),
    ],
)
def test_imagescope_classes(tmp_path, name, attributes, text, expected):
    part = region(*SQUARE.ring, Text=text)
    path = save(tmp_path / "a.xml", imagescope(part, name=name, attributes=attributes))
    assert [item.name for item in read(path)] == [expected]


def test_ndpa(tmp_path):
    shapes = [SQUARE, STAR, NO_CLASS]
    path = write_ndpa(tmp_path / "slide.ndpi.ndpa", shapes, size=SIZE)
    # Nanometers are rounded to integers, so corners differ by up to 0.001 px.
    assert_is(read(path, properties=NDPI), shapes, within=1e-4)
    # The frame does not matter: the positions are physical.
    bounds = Bounds(500, 500, 1000, 400)
    assert_is(read(path, properties=NDPI, bounds=bounds, frame="qupath"), shapes, within=1e-4)


def test_ndpa_circle_open_line_and_mpp(tmp_path):
    states = [
        '<annotation type="circle"><x>-100000</x><y>50000</y><radius>20000</radius></annotation>',
        '<annotation type="freehand"><closed>0</closed><pointlist/></annotation>',
        '<annotation type="pin"><x>1</x><y>1</y></annotation>',
        '<annotation type="linearmeasure"><x1>1</x1></annotation>',
    ]
    text = "".join(f"<ndpviewstate><title>Tumor</title>{one}</ndpviewstate>" for one in states)
    path = save(tmp_path / "a.ndpa", f"<annotations>{text}</annotations>")
    position = {key: "0" for key in NDPI if key.startswith("hamamatsu")}
    (circle,) = read(path, properties=position, mpp=0.5)
    assert circle.geometry.area == pytest.approx(np.pi * 40**2, rel=2e-4)
    assert circle.geometry.centroid.coords[0] == pytest.approx((1000 - 200, 500 + 100))


# Repairs


def test_outlines_that_cross_themselves_are_repaired_and_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    bow_tie = Shape("Tumor", [(0, 0), (100, 100), (100, 0), (0, 100)])
    loop = Shape(
        "",
        [(200, 0), (400, 0), (400, 100), (300, 100), (300, 50), (350, 50), (350, 200), (200, 200)],
    )
    path = write_geojson(tmp_path / "a.geojson", [SQUARE, bow_tie, loop])
    square, both, area = read(path)
    assert square.geometry.equals(polygon(SQUARE))
    assert both.geometry.area == 5000  # both triangles
    # All that the loop encloses is inside, also where it overlaps itself.
    assert area.geometry.is_valid
    assert area.geometry.contains(shapely.Point(325, 75))
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: repaired outlines that cross themselves: feature 2 (Tumor), "
        "feature 3 (Unclassified)"
    ]


def test_repaired_outlines_are_valid_despite_rounding_errors(tmp_path):
    ring = [(3, 4), (4, 3), (1, 0), (2, 1), (3, 1), (3, 3), (5, 6), (3, 0)]
    repaired = shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False)
    assert not repaired.is_valid  # the case that this test is for
    (item,) = read(write_geojson(tmp_path / "a.geojson", [Shape("Tumor", ring)]))
    assert item.geometry.is_valid
    assert item.geometry.area == pytest.approx(3.7, abs=0.01)


def test_overlapping_parts_of_a_multipolygon_are_joined(tmp_path):
    parts = [rectangle(0, 0, 100, 100), rectangle(50, 0, 150, 100)]
    geometry = {"type": "MultiPolygon", "coordinates": [[[*part, part[0]]] for part in parts]}
    (item,) = read(save(tmp_path / "a.json", geometry))
    assert item.geometry.area == 150 * 100


# Frames

BOUNDS = Bounds(800, 300, 1000, 600)


@pytest.mark.parametrize(
    "box,frame",
    [
        ((10, 10, 700, 590), "qupath"),  # outside the bounds as level-0 px
        ((1100, 400, 1700, 800), "level0"),  # outside the cropped slide
        ((100, 650, 300, 950), "level0"),  # on glass that is not scanned
    ],
)
def test_the_frame_is_found_if_only_one_fits(tmp_path, box, frame):
    path = write_geojson(tmp_path / "a.geojson", [Shape("Tumor", rectangle(*box))])
    (item,) = read(path, bounds=BOUNDS)
    x, y = (800, 300) if frame == "qupath" else (0, 0)
    assert item.geometry.bounds == (box[0] + x, box[1] + y, box[2] + x, box[3] + y)


def test_an_unclear_frame_must_be_given(tmp_path):
    path = write_geojson(tmp_path / "a.geojson", [Shape("Tumor", rectangle(820, 320, 900, 500))])
    with pytest.raises(SlideError) as error:
        read(path, bounds=BOUNDS)
    assert str(error.value) == (
        f"{path}: the outlines fit both the complete glass and QuPath's cropped slide; give "
        "--annotation-frame qupath if QuPath made the file, else level0"
    )
    for frame, corner in [("level0", (820, 320)), ("qupath", (1620, 620))]:
        (item,) = read(path, bounds=BOUNDS, frame=frame)
        assert item.geometry.bounds[:2] == corner
    # Without bounds, both frames are the same.
    (item,) = read(path, frame="qupath")
    assert item.geometry.bounds[:2] == (820, 320)


def test_only_geojson_can_be_in_the_frame_of_qupath(tmp_path):
    shapes = [Shape("Tumor", rectangle(820, 320, 900, 500))]
    for write in (write_asap, write_imagescope):
        (item,) = read(write(tmp_path / "a.xml", shapes), bounds=BOUNDS)
        assert item.geometry.bounds[:2] == (820, 320)


# Errors

BILLION = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    "<ASAP_Annotations>&b;</ASAP_Annotations>"
)
VALID = json.dumps([feature(SQUARE)])
POINT = '<Coordinate Order="0" X="{}" Y="1"/>'


def asap(points: str) -> str:
    return (
        '<ASAP_Annotations><Annotations><Annotation Type="Polygon" PartOfGroup="Tumor">'
        f"<Coordinates>{points}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )


@pytest.mark.parametrize(
    "content,message",
    [
        (VALID[:-40], "damaged or cut short ("),
        (VALID.encode("utf-8")[:-3] + b"\xff\xff", "damaged or cut short ("),
        (gzip.compress(VALID.encode())[:-20], "cannot be read ("),
        (gzip.compress(VALID.encode())[:-12] + bytes(12), "cannot be read ("),
        ("[" * 100_000, "nested too deep; export the annotations again"),
        ("", "not an annotation file; give QuPath GeoJSON"),
        ("x,y\n1,2\n", "not an annotation file; give QuPath GeoJSON"),
        (b"\x89PNG\r\n", "not an annotation file; give QuPath GeoJSON"),
        ("{}", "feature 1 is not a geometry of GeoJSON; export"),
        ('[{"type": "Circle"}]', "feature 1 is not a geometry of GeoJSON; export"),
        ("[1]", "feature 1 is not a GeoJSON object; export"),
        ('[{"type": "Feature", "geometry": 3}]', "feature 1 is not a geometry of GeoJSON"),
        (
            '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [NaN, 5]]]}',
            "feature 1 (Unclassified) has a coordinate that is not a number or too large; delete",
        ),
        (
            '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1e999, 5]]]}',
            "feature 1 (Unclassified) has a coordinate that is not a number or too large; delete",
        ),
        (
            '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [null, 5]]]}',
            "feature 1 (Unclassified) has a coordinate that is not a number or too large; delete",
        ),
        ('{"type": "Polygon", "coordinates": [[[0], [1], [2]]]}', "feature 1 has no valid coord"),
        ('{"type": "Polygon", "coordinates": [[0, 1, 2]]}', "feature 1 has no valid coordinates"),
        ('{"type": "Polygon", "coordinates": [[["a", 1]]]}', "feature 1 has no valid coordinates"),
        ('{"type": "Polygon", "coordinates": 5}', "feature 1 has no valid coordinates"),
        ('{"type": "Polygon"}', "feature 1 has no valid coordinates"),
        (
            [feature(Shape("Tumor", rectangle(1900, 10, 2500, 300)))],
            "most of the outlines (x 1900 to 2500, y 10 to 300) are outside the slide of "
            "2000x1000 px; give the annotations of this slide",
        ),
        ("<ASAP_Annotations><Annotations>", "damaged or cut short ("),
        ("<html></html>", "the element 'html' is not the root of an annotation file; export"),
        (BILLION, "the XML has a document type declaration, which no annotation file has; export"),
        (BILLION.encode("utf-16"), "the XML has a document type declaration"),
        (asap('<Coordinate Order="0" X="1"/>'), "a point has no attribute Y; export"),
        (asap(POINT.format("abc")), "'abc' is not a coordinate; export"),
        (
            asap(POINT.format("nan") * 3),
            "annotation 1 (Tumor) has a coordinate that is not a number or too large; delete",
        ),
        (
            "<annotations><ndpviewstate><coordformat>inches</coordformat></ndpviewstate>"
            "</annotations>",
            "annotation 1 has coordinates in 'inches', not nanometers; export",
        ),
        (
            f'[{{"type": "Feature", "geometry": {json.dumps(feature(SQUARE)["geometry"])}, '
            '"properties": [1]}, {"type": "GeometryCollection", "geometries": [{}]}]',
            "feature 2 is not a geometry of GeoJSON; export",
        ),
        (
            "<annotations><ndpviewstate><title>x</title></ndpviewstate></annotations>",
            "NDPA annotations need the position and the mpp that only NDPI slides state; give",
        ),
    ],
)
def test_bad_files_are_one_line(tmp_path, content, message):
    path = save(tmp_path / "a.geojson", content)
    with pytest.raises(SlideError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)


def test_missing_files_folders_and_pipes_are_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in [
        ("none.json", "no such file; give"),
        (".", "cannot be read (Is a directory"),
        ("pipe", "cannot be read (not a regular file"),
    ]:
        with pytest.raises(SlideError, match=r"; give QuPath GeoJSON, ASAP XML, ") as error:
            read(tmp_path / name)
        assert message in str(error.value)


def test_outlines_of_another_slide_fit_no_frame(tmp_path):
    path = write_geojson(tmp_path / "a.geojson", [Shape("Tumor", rectangle(1500, 10, 4000, 90))])
    with pytest.raises(SlideError, match="the outlines do not fit the slide of 2000x1000 px, of"):
        read(path, bounds=BOUNDS)


def test_too_many_points_or_values_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(outlines, "MAX_POINTS", 100)
    ring = star(500, 500, 100, seed=1, num=101)
    for write in (write_geojson, write_asap):
        path = write(tmp_path / "a", [Shape("Tumor", ring)])
        with pytest.raises(SlideError, match="a: has more than 100 points; simplify the outlines"):
            read(path)
    with pytest.raises(SlideError, match="has more than 100 points"):
        read(write_ndpa(tmp_path / "a", [Shape("Tumor", ring)], size=SIZE), properties=NDPI)
    with pytest.raises(SlideError, match="has more than 100 points"):
        read(save(tmp_path / "a", list(range(500))))


def test_too_many_elements_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("wsi_idc.slides.outlines_xml._MAX_ELEMENTS", 100)
    # The elements of points do not count.
    shapes = [Shape("Tumor", star(500, 500, 100, seed=1, num=101))]
    assert read(write_ndpa(tmp_path / "a", shapes, size=SIZE), properties=NDPI)
    with pytest.raises(SlideError, match="a: has more than 100 elements; give QuPath GeoJSON, "):
        read(save(tmp_path / "a", f"<annotations>{'<a/>' * 101}</annotations>"))


def test_too_many_bytes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("wsi_idc.slides.annotation_files._MAX_BYTES", 1000)
    data = VALID.encode() + b" " * 2000
    with pytest.raises(SlideError, match=r"cannot be read \(larger than 0.001 MB"):
        read(save(tmp_path / "a.json", data))
    with pytest.raises(SlideError, match=r"larger than 0.001 MB; simplify"):
        read(save(tmp_path / "a.json.gz", gzip.compress(data)))


# Classes


def test_table_of_classes():
    table = class_table(" Tumor = idc,Stroma=Non_IDC , Tumor: DCIS=IGNORE, Tissue=unannotated")
    assert table == {
        "tumor": "IDC",
        "stroma": "non-IDC",
        "tumor: dcis": "ignore",
        "tissue": "unannotated",
    }
    assert target_of("TUMOR", table) == "IDC"
    assert target_of("tumor:IDC: high grade", table) == "IDC"
    assert target_of("Tumor:  DCIS: low", table) == "ignore"
    assert target_of("Stroma ", table) == "non-IDC"
    assert target_of("Fat", table) is None
    assert target_of("", table) is None
    assert target_of("", class_table("Unclassified=ignore")) == "ignore"


def test_a_class_with_a_comma_has_quotes():
    table = class_table('Stroma=non-IDC, "Tumor, invasive" = IDC, "In situ, low=ignore"')
    assert table == {"stroma": "non-IDC", "tumor, invasive": "IDC", "in situ, low": "ignore"}
    with pytest.raises(DataError, match=r"'Tumor' is not CLASS=TARGET .* with a comma needs quot"):
        class_table("Tumor, invasive=IDC")
    with pytest.raises(DataError, match=r"^--classes: field larger than field limit"):
        class_table("x" * 200_000)
    found = [Annotation("Tumor, invasive", shapely.box(0, 0, 1, 1))]
    with pytest.raises(DataError, match=r'found "Tumor, invasive" \(1\); name all classes'):
        check_classes(found, class_table())


def test_default_classes_are_those_with_one_meaning():
    table = class_table()
    for name, target in [
        ("Tumor", "IDC"),
        ("Tumor: IDC", "IDC"),
        ("Invasive ductal carcinoma", "IDC"),
        ("Stroma", "non-IDC"),
        ("Immune cells", "non-IDC"),
        ("non-IDC", "non-IDC"),
        ("Ignore*", "ignore"),
        ("Region*", "unannotated"),
        ("Necrosis", None),
        ("Other", None),
        ("Positive", None),
        ("", None),
    ]:
        assert target_of(name, table) == target, name


@pytest.mark.parametrize(
    "text", ["Tumor", "Tumor=cancer", "=IDC", "Tumor=IDC,,Stroma=non-IDC", ","]
)
def test_bad_rows_of_the_table_are_errors(text):
    with pytest.raises(DataError, match=r'^--classes: .* give, for example, "Tumor=IDC, '):
        class_table(text)


def test_a_class_with_two_targets_is_an_error():
    with pytest.raises(DataError, match="'tumor' has two targets; give one"):
        class_table("Tumor=IDC, tumor=ignore")


def test_classes_without_a_target_are_listed_with_their_numbers():
    found = [Annotation(name, shapely.box(0, 0, 1, 1)) for name in ["Tumor", "Tumor", "Fat", ""]]
    check_classes(found[:2], class_table())
    with pytest.raises(DataError) as error:
        check_classes(found, class_table(), Path("a.xml"))
    assert str(error.value) == (
        "a.xml: no target for the class 'Fat', 'Unclassified'; found Tumor (2), Fat (1), "
        'Unclassified (1); name all classes in --classes, for example "Tumor=IDC, Stroma=non-IDC, '
        'Necrosis=ignore"'
    )
