import time

import numpy as np
import pytest
import shapely

from tests.outlines import (
    NDPI,
    Shape,
    rasterize,
    rectangle,
    star,
    write_asap,
    write_geojson,
    write_imagescope,
    write_ndpa,
)
from wsi_idc.core.errors import DataError
from wsi_idc.slides.annotations import Annotation, class_table, read_annotations
from wsi_idc.slides.labels import (
    LEFT_OUT,
    SHARES,
    annotation_mask,
    choose_unannotated,
    label_patches,
    needs_choice,
)

SIZE = (720, 480)  # width and height of the slides
PATCH = 48
TABLE = class_table("Tumor=IDC, Stroma=non-IDC, Necrosis=ignore, Region*=unannotated")


def grid(step: float = PATCH, *, start: float = 0) -> np.ndarray:
    """Return boxes of patches that cover the slide."""
    x, y = np.meshgrid(np.arange(start, SIZE[0] - PATCH + 1, step), np.arange(start, 433, step))
    left, top = x.ravel(), y.ravel()
    return np.stack([left, top, left + PATCH, top + PATCH], axis=1).astype(float)


def annotation(name: str, ring, holes=()) -> Annotation:
    return Annotation(name, shapely.Polygon(ring, holes))


def label_of(*annotations: Annotation, unannotated: str = "unknown", min_share: float = 0.5) -> int:
    """Return the label of the patch from (0, 0) to (100, 100)."""
    box = np.array([[0, 0, 100, 100.0]])
    labels, _ = label_patches(annotations, TABLE, box, unannotated=unannotated, min_share=min_share)
    return int(labels[0])


def left(name: str, width: float) -> Annotation:
    return annotation(name, rectangle(0, 0, width, 100))


def right(name: str, width: float) -> Annotation:
    return annotation(name, rectangle(100 - width, 0, 100, 100))


HOLES = [
    Shape("Tumor", star(240, 200, 190, seed=1), [rectangle(200, 150, 280, 260)]),
    Shape("Stroma", star(560, 280, 150, seed=2), [star(560, 280, 40, seed=3)]),
    Shape("Necrosis", rectangle(215, 170, 260, 240)),  # in the hole
]
TOUCHING = [
    Shape("Tumor", rectangle(96, 48, 288, 240)),  # along the edges of patches
    Shape("Stroma", rectangle(288, 48, 504, 240)),
    Shape("Tumor", star(400, 340, 120, seed=4)),  # overlaps with the next one
    Shape("Stroma", star(470, 360, 130, seed=5)),
    Shape("Tumor", star(430, 380, 90, seed=6)),
    Shape("Necrosis", star(420, 330, 60, seed=7)),
    Shape("Region*", rectangle(0, 0, 720, 480)),
]
STRIPS = [
    Shape("Tumor", rectangle(100, 0, 100 + PATCH, 480)),  # as wide as a patch, not on the grid
    Shape("Stroma", [(0, 400), (720, 300), (720, 348), (0, 448)]),
    Shape("Necrosis", rectangle(300, 0, 310, 480)),
    Shape("Tumor", [(500, 20), (700, 20), (700, 250), (690, 250), (690, 30), (500, 30)]),
    Shape("Tumor", star(600, 150, 80, seed=8, num=400)),
]
SLIDES = {"holes": HOLES, "touching": TOUCHING, "strips": STRIPS}


def raster_shares(shapes: list[Shape], boxes: np.ndarray) -> np.ndarray:
    """Return the shares of each box by counting px; the columns are ``SHARES``."""
    classes = np.full(SIZE[::-1], SHARES.index("unannotated"))
    for target in ("non-IDC", "IDC", "ignore"):  # later classes have precedence
        for shape in shapes:
            if TABLE[shape.name.lower()] == target:
                classes[rasterize(shape, size=SIZE)] = SHARES.index(target)
    patches = [classes[t:b, x:r].ravel() for x, t, r, b in boxes.astype(int)]
    return np.array([np.bincount(patch, minlength=4) / patch.size for patch in patches])


def expected_label(shares: np.ndarray, unannotated: str, min_share: float) -> int | None:
    """Return the label; None if a share is so near to a limit that px are not exact enough."""
    non_idc, idc, ignore, rest = shares
    by_label = {0: non_idc, 1: idc, LEFT_OUT: ignore, -1: 0.0}
    by_label[{"non-IDC": 0, "unknown": -1}.get(unannotated, LEFT_OUT)] += rest
    if unannotated == "skip":  # two classes whose patches are left out
        by_label[LEFT_OUT] = max(ignore, rest)
    best, second = sorted(by_label, key=by_label.__getitem__)[:-3:-1]
    if abs(by_label[best] - min_share) < 0.01:
        return None
    if by_label[best] < min_share:
        return -1
    return None if by_label[best] - by_label[second] < 0.01 else best


def assert_like_raster(annotations, shapes, boxes, *, unannotated="unknown", min_share=0.5):
    labels, shares = label_patches(
        annotations, TABLE, boxes, unannotated=unannotated, min_share=min_share
    )
    counted = raster_shares(shapes, boxes)
    assert np.abs(shares - counted).max() < 0.01
    assert np.allclose(shares.sum(axis=1), 1)
    expected = [expected_label(row, unannotated, min_share) for row in counted]
    compared = [(int(a), b) for a, b in zip(labels, expected, strict=True) if b is not None]
    assert len(compared) > 0.9 * len(boxes)
    assert [a for a, _ in compared] == [b for _, b in compared]
    assert len(set(labels)) > 1


@pytest.mark.parametrize("unannotated", ["non-IDC", "unknown", "skip"])
@pytest.mark.parametrize("name", SLIDES)
def test_labels_equal_those_of_a_raster(tmp_path, name, unannotated):
    path = write_geojson(tmp_path / "a.geojson", SLIDES[name])
    annotations = read_annotations(path, size=SIZE)
    assert_like_raster(annotations, SLIDES[name], grid(), unannotated=unannotated)


@pytest.mark.parametrize("min_share", [0.2, 0.75, 0.9])
def test_labels_equal_those_of_a_raster_with_overlapping_patches(tmp_path, min_share):
    path = write_geojson(tmp_path / "a.geojson", TOUCHING)
    annotations = read_annotations(path, size=SIZE)
    assert_like_raster(annotations, TOUCHING, grid(29, start=3), min_share=min_share)


@pytest.mark.parametrize("form", ["geojson", "geojson.gz", "asap", "imagescope", "ndpa"])
def test_labels_of_each_format_equal_those_of_a_raster(tmp_path, form):
    path = tmp_path / f"a.{form}"
    shapes = HOLES + TOUCHING[2:6]
    if form in ("asap", "ndpa"):  # formats without holes
        shapes = [Shape(shape.name, shape.ring) for shape in shapes]
    if form == "ndpa":
        write_ndpa(path, shapes, size=SIZE)
    else:
        write = {"asap": write_asap, "imagescope": write_imagescope}.get(form, write_geojson)
        write(path, shapes)
    annotations = read_annotations(path, size=SIZE, properties=NDPI)
    assert_like_raster(annotations, shapes, grid(), unannotated="non-IDC")


@pytest.mark.parametrize(
    "annotations,unannotated,expected",
    [
        ([left("Tumor", 50)], "non-IDC", 1),  # 0.5 and 0.5: IDC has precedence
        ([left("Tumor", 49)], "non-IDC", 0),
        ([left("Tumor", 50)], "unknown", 1),
        ([left("Tumor", 50)], "skip", 1),
        ([left("Tumor", 40)], "unknown", -1),
        ([left("Tumor", 40)], "skip", LEFT_OUT),
        ([], "skip", LEFT_OUT),
        ([], "unknown", -1),
        ([], "non-IDC", 0),
        ([left("Tumor", 100)], "non-IDC", 1),
        ([left("Tumor", 50), right("Stroma", 50)], "skip", 1),
        ([left("Stroma", 50)], "unknown", 0),
        ([left("Tumor", 50), right("Necrosis", 50)], "non-IDC", LEFT_OUT),
        ([left("Tumor", 40), right("Necrosis", 30)], "non-IDC", -1),  # 0.4, 0.3, 0.3: mixed
        ([left("Tumor", 40), right("Necrosis", 30)], "skip", -1),
        ([left("Tumor", 100), left("Necrosis", 100)], "non-IDC", LEFT_OUT),
        ([left("Tumor", 100), left("Stroma", 100)], "non-IDC", 1),
        # The union of two outlines counts once: 0.4 and not 0.8.
        ([left("Tumor", 40), left("Tumor", 40)], "non-IDC", 0),
        ([left("Tumor", 30), left("Stroma", 80)], "unknown", 0),  # 0.3 and 0.5
        ([left("Region*", 100)], "non-IDC", 0),
    ],
)
def test_rules(annotations, unannotated, expected):
    assert label_of(*annotations, unannotated=unannotated) == expected


def test_shares_at_the_minimum_reach_it():
    # In floating point, 0.1 + 0.2 + ... of thirds of a patch are not exact.
    box = np.array([[0.1, 0.1, 0.4, 0.4]])
    tumor = annotation("Tumor", rectangle(0.1, 0.1, 0.25, 0.4))
    labels, shares = label_patches([tumor], TABLE, box, unannotated="non-IDC")
    assert labels.tolist() == [1]
    assert shares[0].tolist() == pytest.approx([0, 0.5, 0, 0.5])
    assert label_of(left("Tumor", 90), min_share=0.9) == 1
    assert label_of(left("Tumor", 100), min_share=1) == 1


def test_labels_and_shares_have_a_row_for_each_box():
    labels, shares = label_patches([left("Tumor", 9)], TABLE, np.empty((0, 4)))
    assert labels.shape == (0,) and labels.dtype == np.int8
    assert shares.shape == (0, 4)


def test_sub_classes_count_for_their_own_row_or_their_parent():
    table = class_table("Tumor=IDC, Tumor: DCIS=ignore, Stroma=non-IDC")
    box = np.array([[0, 0, 100, 100.0]])
    for name, expected in [("Tumor: DCIS", LEFT_OUT), ("Tumor: IDC", 1), ("stroma:x", 0)]:
        labels, _ = label_patches([left(name, 100)], table, box)
        assert labels.tolist() == [expected], name


def test_a_class_without_a_target_is_an_error():
    with pytest.raises(DataError, match=r"no target for the class 'Fat'; found Fat \(1\)"):
        label_of(left("Fat", 10))


def test_only_tumor_needs_a_choice():
    tumor, stroma = left("Tumor", 10), left("Stroma", 10)
    assert needs_choice([tumor], TABLE) and needs_choice([], TABLE)
    assert not needs_choice([tumor, stroma], TABLE)
    assert choose_unannotated([tumor, stroma], TABLE, None) == "unknown"
    assert choose_unannotated([tumor], TABLE, "skip") == "skip"
    with pytest.raises(DataError, match="give --unannotated non-IDC if"):
        choose_unannotated([tumor], TABLE, None)


@pytest.mark.parametrize("seed", range(5))
def test_shares_equal_those_of_one_overlay_per_patch(seed):
    """Random outlines with integer corners touch patches and each other at points and edges."""
    rng = np.random.default_rng(seed)
    annotations = []
    for _ in range(12):
        ring = rng.integers(0, 12, (rng.integers(3, 9), 2)) * 20.0
        shape = shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False)
        if shape.area:
            annotations.append(Annotation(str(rng.choice(["Tumor", "Stroma", "Necrosis"])), shape))
    x, y = np.meshgrid(np.arange(0, 240, 20.0), np.arange(0, 240, 20.0))
    boxes = np.stack([x, y, x + 20, y + 20], axis=-1).reshape(-1, 4)
    _, shares = label_patches(annotations, TABLE, boxes)
    of = {
        name: shapely.union_all([item.geometry for item in annotations if item.name == name])
        for name in ("Tumor", "Stroma", "Necrosis")
    }
    tumor = of["Tumor"] - of["Necrosis"]
    stroma = of["Stroma"] - of["Necrosis"] - of["Tumor"]
    for box, row in zip(boxes, shares, strict=True):
        patch = shapely.box(*box)
        areas = [(patch & shape).area / 400 for shape in (stroma, tumor, of["Necrosis"])]
        assert row.tolist() == pytest.approx([*areas, 1 - sum(areas)], abs=1e-9)


def test_many_patches_and_points_are_fast():
    angle = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    radius = 20_000 * (1 + 0.2 * np.sin(5 * angle) + 0.002 * np.sin(2000 * angle))
    ring = np.stack([32_000 + radius * np.cos(angle), 32_000 + radius * np.sin(angle)], axis=1)
    x, y = np.meshgrid(np.arange(0, 63_200, 200.0), np.arange(0, 63_200, 200.0))
    boxes = np.stack([x, y, x + 200, y + 200], axis=-1).reshape(-1, 4)
    tumor = annotation("Tumor", ring)
    start = time.process_time()
    _, shares = label_patches([tumor], TABLE, boxes, unannotated="non-IDC")
    assert time.process_time() - start < 20  # about 2 s
    assert len(boxes) == 99_856
    area = tumor.geometry.intersection(shapely.box(0, 0, 63_200, 63_200)).area
    assert shares[:, SHARES.index("IDC")].sum() * 200**2 == pytest.approx(area)


@pytest.mark.parametrize("name", SLIDES)
def test_mask_has_the_px_whose_centers_are_in_an_outline(name):
    shapes = SLIDES[name][:6]
    annotations = [annotation(shape.name, shape.ring, shape.holes) for shape in shapes]
    expected = np.logical_or.reduce([rasterize(shape, size=SIZE) for shape in shapes])
    mask = annotation_mask(annotations, SIZE[::-1], (1, 1))
    assert mask.shape == (480, 720)
    assert (mask != expected).sum() == 0


def test_mask_is_scaled_and_cut_at_its_border():
    square = annotation("Tumor", rectangle(-50, 40, 60, 80))
    expected = np.zeros((10, 10), bool)
    expected[4:8, :3] = True
    assert (annotation_mask([square], (10, 10), (0.05, 0.1)) == expected).all()
    assert not annotation_mask([], (3, 4), (1, 1)).any()
    far = annotation("Tumor", rectangle(1000, 1000, 1010, 1010))
    assert not annotation_mask([far], (10, 10), (0.1, 0.1)).any()
