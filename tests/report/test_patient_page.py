import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from bokeh.models import ColumnDataSource
from bokeh.settings import settings
from PIL import Image

from tests.report.browser import ask, needs_chromium, requests_in
from tests.small_maps import EVIL, big_map, edge_map, hand_map, slide_view, small_map
from wsi_idc.data.artifacts import FLAGS
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.geometry.grid import corners_of, mosaic
from wsi_idc.maps.cohort import cohort_row
from wsi_idc.maps.coordinates import grid_transform
from wsi_idc.maps.layers import crop_to_patches
from wsi_idc.maps.patient_map import PatientMap, SlideView
from wsi_idc.report.canvas import build_canvas, canvas_values, source_columns
from wsi_idc.report.layers import page_layers
from wsi_idc.report.patient_page import (
    _build_document,
    patient_page,
    provenance_of,
    tissue_pictures,
)

FIGURES = """
    const texts = {};
    for (const id of ["threshold-value", "idc-fraction", "idc-area", "largest-region", "auc",
        "called-patches", "sensitivity", "specificity", "dice", "tp", "fp", "fn", "tn"])
        texts[id] = text(id);
"""


class Outline(HTMLParser):
    """Texts, attributes, styles and scripts of a page, as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        kind = {"style": self.styles, "script": self.scripts}.get(self._inside, self.texts)
        kind.append(data)


def assert_closed(html: str) -> Outline:
    """Assert that no markup of a page leads out of it; return the parsed page."""
    page = Outline(html)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "srcset", "action", "data", "poster"):
            assert not re.match(r"\s*(https?:|//|javascript:)", value, re.I), (tag, name, value)
    for style in [*page.styles, *(value for _, name, value in page.attributes if name == "style")]:
        assert not re.search(r"url\(\s*['\"]?\s*(https?:|//)|@import", style)
    policies = [value for tag, _, value in page.attributes if "default-src" in value]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; ")
    assert "http" not in policies[0]
    return page


def page_of(patient_map: PatientMap) -> str:
    image = None
    if patient_map.patches is not None:
        image = mosaic(patient_map.patches, patient_map.row_col, shape=patient_map.shape, fill=255)
    return patient_page(patient_map, image, cohort_row(patient_map, threshold=0.5))


def write_page(folder: Path, patient_map: PatientMap) -> Path:
    path = folder / "page.html"
    path.write_text(page_of(patient_map), encoding="utf-8")
    return path


def test_page_has_patient_origin_and_notice():
    page = assert_closed(page_of(hand_map()))
    text = re.sub(r"\s+", " ", " ".join(page.texts))
    assert "Patient P1: wsi-idc" in text
    assert "5 patches · 0.20 mm² of patches · 4 µm/px (assumed) · cnn · a test patient" in text
    assert "Research use only, never a diagnosis." in text
    assert "of 4 labelled patches" in text
    values = ("best.pt (cnn)", "0123456789abcdef" * 4, "fd" * 32, "2026-01-02")
    assert all(value in text for value in values)
    assert "trained on this patient" not in text
    assert "200 µm a side" in text
    assert " 0.5 µm/px (given), patches at 4 µm/px ·" in page_of(edge_map())
    # Where patches overlap, a cell is the middle of its patch.
    assert "100 µm a side" in page_of(hand_map(stride_px=25, patches=None))
    seen = hand_map(model={"role_of_patient": "train"})
    assert "The model was trained on this patient" in page_of(seen)
    unknown = page_of(hand_map(model={"role_of_patient": "in no split"}))
    assert "· new for the model" in unknown
    assert "patient of the model" not in unknown


def test_the_bokeh_document_is_valid(caplog):
    settings.perform_document_validation = True
    try:
        page_of(hand_map(novelty=np.full(5, 0.1, np.float32)))
    finally:
        settings.perform_document_validation = False
    assert [record for record in caplog.records if record.name.startswith("bokeh")] == []


def test_text_of_a_map_is_never_markup():
    breaks = f"</script>{EVIL}$$x$$ &lt;"
    odd = hand_map(
        patient=EVIL,
        class_names=(breaks, "IDC"),
        mpp_source=breaks,
        cam_layer=breaks,
        model={"architecture": breaks, "sha256": EVIL, "role_of_patient": EVIL, "tta": [EVIL]},
        provenance={"command": [breaks], "libraries": {EVIL: EVIL}, "identity": {EVIL: [EVIL]}},
    )
    html = page_of(odd)
    page = assert_closed(html)
    assert not [tag for tag, _, _ in page.attributes if tag == "img"]
    assert "<img src=x" not in html
    assert page.texts.count(EVIL) >= 2  # heading, sha256
    assert any(EVIL in text and text.startswith("Patient ") for text in page.texts)
    assert "mathjax" not in html.split("</head>")[1].lower()


@pytest.mark.parametrize("case", ["all", "bare", "slide"])
def test_page_has_the_layers_of_the_map(case: str):
    values = np.full(5, 0.1, np.float32)
    slide = SlideView("a.svs", 0.5, 1600, 1600, np.full((8, 8, 3), 200, np.uint8), np.ones((8, 8)))
    patient_map = {
        "all": hand_map(uncertainty=values, unsmoothed=values, unsmoothed_threshold=0.4),
        "bare": hand_map(cam=None, patches=None, label=np.full(5, -1, np.int8)),
        "slide": hand_map(slide=slide, patches=None),
    }[case]
    html = page_of(patient_map)
    assert_closed(html)
    has = {name: f'"name":"{name}_on"' in html for name in _LAYERS}
    assert has == {name: case in cases for name, cases in _LAYERS.items()}
    assert ("made without its image" in html) == (case != "all")
    assert ("made without a CAM" in html) == (case == "bare")
    assert ('id="sensitivity"' in html) == (case != "bare")
    assert ("a.svs, 1600 x 1600 px" in html) == (case == "slide")


_LAYERS = {
    **dict.fromkeys(("probability", "regions"), ("all", "bare", "slide")),
    **dict.fromkeys(("truth", "labels", "errors", "cam", "tissue"), ("all", "slide")),
    **dict.fromkeys(("uncertainty", "unsmoothed"), ("all",)),
    "mask": ("slide",),
}


def test_outline_of_the_tissue_mask_is_on_the_slide():
    tissue = np.zeros((8, 16), bool)
    tissue[2:4, 4:8] = True
    slide = SlideView("a.svs", 0.5, 3200, 1600, np.zeros((8, 16, 3), np.uint8), tissue)
    coords = np.array([[400, 800]], np.int32)
    patient_map = small_map([(1, 1)], patch_px=50, slide=slide, coords=coords, patches=None)
    lines = source_columns(patient_map, [], threshold=0.5)["mask"]
    # The page begins at x 0.2, y 0.4 mm of the slide; a px of the mask is 0.1 mm wide.
    ends = sorted(
        zip(*(np.round(lines[name], 6) for name in ("x0", "y0", "x1", "y1")), strict=True)
    )
    assert ends == [
        (0.2, -0.2, 0.2, 0.0),
        (0.2, -0.2, 0.6, -0.2),
        (0.2, 0.0, 0.6, 0.0),
        (0.6, -0.2, 0.6, 0.0),
    ]


@pytest.mark.parametrize("bounds", [None, Bounds(3001, 1999, 700_000, 200_000)])
@pytest.mark.parametrize("stride_px", [50, 30])
def test_last_cell_of_a_large_grid_is_where_its_patch_is_on_the_slide(bounds, stride_px: int):
    cells, slide_mpp = np.array([(0, 0), (299, 0), (0, 299), (299, 299)], np.int32), 0.2485
    sides = {"stride_px": stride_px, "mpp": 4.0}
    coords = corners_of(cells, slide_mpp=slide_mpp, **sides)
    side = int(coords.max() + 1000)
    thumbnail, tissue = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), bool)
    slide = SlideView("a.scn", slide_mpp, side, side, thumbnail, tissue, bounds=bounds)
    found = small_map(cells, patch_px=50, slide=slide, coords=coords, patches=None, **sides)
    (picture,), _ = tissue_pictures(found, None)
    assert picture.w == picture.h == side * slide_mpp / 1000
    # A cell is the middle of its patch.
    expected = coords + (50 - stride_px) / 2 * 4.0 / slide_mpp
    on_page = cells[:, ::-1] * stride_px * 4.0 / 1000 - (picture.x, picture.y)
    assert np.abs(on_page * 1000 / slide_mpp - expected).max() <= 1
    in_viewer = grid_transform(found, "level0").points(cells[:, ::-1])
    assert np.abs(in_viewer - expected).max() <= 1


def test_slide_is_visible_where_the_mosaic_has_no_patch():
    found = small_map(slide=slide_view())
    image = mosaic(found.patches, found.row_col, shape=found.shape, fill=255)
    (_, stitched), _ = tissue_pictures(found, image)
    with Image.open(io.BytesIO(base64.b64decode(stitched.url.partition(",")[2]))) as picture:
        opacity = np.asarray(picture.convert("RGBA"))[..., 3]
    has_patch = ~np.isnan(crop_to_patches(found).probability_grid())
    expected = np.kron(has_patch, np.full((10, 10), 255))
    np.testing.assert_allclose(opacity, expected, atol=40)  # AVIF is lossy
    (stitched,), _ = tissue_pictures(small_map(), image)  # a pack has no slide below
    with Image.open(io.BytesIO(base64.b64decode(stitched.url.partition(",")[2]))) as picture:
        assert picture.mode == "RGB"


def test_provenance_rounds_smoothing_and_omits_unknown_values():
    smoothing = {"sigma_um": 399.1353414198707, "temperature": 0.70098960598, "threshold": 0.5}
    names = dict(provenance_of(hand_map(smoothing=smoothing)))
    assert names["smoothing"] == "sigma_um 399.1, temperature 0.701, threshold 0.5"
    names = dict(provenance_of(hand_map(cam=None, model={}, provenance={"identity": "odd"})))
    assert set(names) - {"checkpoint"} == {"threshold, temperature", "resolution", "classes"}
    assert names["threshold, temperature"] == "0.5, 1.25"


def test_a_page_has_no_values_of_the_page_before():
    def without_ids(html: str) -> str:  # bokeh counts its models and draws random ids
        return re.sub(r"\bp\d{4,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "", html)

    maps = [hand_map(), big_map(40, cols=5), big_map(30, cols=7)]
    first_pages = []
    for patient_map in maps:
        _build_document.cache_clear()
        first_pages.append(without_ids(page_of(patient_map)))
    assert [without_ids(page_of(patient_map)) for patient_map in maps] == first_pages
    assert _build_document.cache_info().currsize == 2  # the last two have the same layers


def test_page_of_2000_patches_is_below_15_mb():
    html = page_of(big_map(2000, cols=50))
    assert 2_000_000 < len(html.encode()) < 15_000_000


@pytest.mark.parametrize("cols", [1, 20, 2000])
def test_no_cell_is_below_the_toolbar(cols: int):
    patient_map = big_map(2000, cols=cols)
    columns = source_columns(patient_map, [], threshold=0.5)
    sources = {name: ColumnDataSource(dict(data)) for name, data in columns.items()}
    canvas, _ = build_canvas(page_layers(patient_map, has_tissue=False), sources)
    for model, values in canvas_values(patient_map, canvas):
        model.update(**values)
    x_range, y_range = canvas.x_range, canvas.y_range
    mm_per_px = (x_range.end - x_range.start) / canvas.width
    assert mm_per_px == pytest.approx((y_range.start - y_range.end) / canvas.height)
    right = min(cols, patient_map.shape[1]) * 0.2
    assert x_range.start < 0
    # The toolbar is 30 px wide, and a canvas 600 px wide is scaled by 600 / 880.
    assert (x_range.end - right) / mm_per_px * 600 / canvas.width > 30


@needs_chromium
def test_area_beyond_the_edge_of_the_slide_does_not_count(tmp_path: Path):
    page, log = write_page(tmp_path, edge_map()), tmp_path / "net.json"
    texts = ask(page, FIGURES + "return texts;", net_log=log)
    assert (texts["idc-area"], texts["largest-region"]) == ("0.04 mm²", "0.04 mm²")
    assert texts["called-patches"] == "3 of 4"


@needs_chromium
def test_flagged_patches_are_left_out_of_area_and_region(tmp_path: Path):
    flags = np.array([0, FLAGS["blur"], FLAGS["pen"] | FLAGS["blur"], 0, 0], np.uint8)
    patient_map = hand_map(flags=flags, flag_bits=FLAGS)
    script = FIGURES + "texts.flags = []; const {selected, data} = model('canvas').renderers"
    script += ".map((one) => one.data_source).find((one) => one.name === 'patches');"
    script += "for (let i = 0; i < 3; i++) { selected.indices = [i];"
    script += " await pause(50); texts.flags.push(text('patch-flags')); }"
    script += "texts.lines = model('canvas').renderers.map((one) => one.data_source)"
    script += ".find((one) => one.name === 'regions').data.x0.length; return texts;"
    for excludes, area, lines in ((False, "0.12 mm²", 10), (True, "0.08 mm²", 8)):
        page = write_page(tmp_path, replace(patient_map, exclude_flagged=excludes))
        texts = ask(page, script)
        assert (texts["idc-area"], texts["largest-region"]) == (area, "0.04 mm²")
        assert texts["called-patches"] == "3 of 5"
        assert texts["flags"] == ["none", "blur", "blur, pen"]
        assert texts["lines"] == lines
        html = page.read_text()
        assert ("left out of areas and regions" in html) == excludes
        assert "2 blur, 1 pen" in html


@needs_chromium
def test_threshold_updates_figures_and_regions(tmp_path: Path):
    page = write_page(tmp_path, hand_map())
    log = tmp_path / "net.json"
    answer = ask(
        page,
        FIGURES + "const before = {...texts}, slider = model('threshold');"
        "const lines = () => model('regions').data.x0.length;"
        "const first = lines(), codes = [...model('errors').data.errors[0]];"
        "slider.value = 0.85; await pause(300);"
        + FIGURES.replace("const texts", "const after").replace("texts[", "after[")
        + "return {before, after, first, codes, second: lines(),"
        " later: [...model('errors').data.errors[0]]};",
        net_log=log,
    )
    assert answer["before"] == {
        "threshold-value": "0.500",
        "idc-fraction": "60.0 %",
        "idc-area": "0.12 mm²",
        "largest-region": "0.04 mm²",
        "called-patches": "3 of 5",
        "sensitivity": "0.500",
        "specificity": "0.500",
        "dice": "0.500",
        "auc": "0.750",
        **dict.fromkeys(("tp", "fp", "fn", "tn"), "1"),
    }
    assert (answer["first"], answer["second"]) == (10, 4)
    assert answer["codes"] == [1, 0, 0, 0, 2, 3, 4, 0, 0, 0, 0, 0]
    assert answer["after"] == answer["before"] | {
        "threshold-value": "0.850",
        "idc-fraction": "20.0 %",
        "idc-area": "0.04 mm²",
        "largest-region": "0.04 mm²",
        "called-patches": "1 of 5",
        "specificity": "1.000",
        "dice": "0.667",
        "fp": "0",
        "tn": "2",
    }
    assert answer["later"] == [1, 0, 0, 0, 4, 3, 4, 0, 0, 0, 0, 0]
    assert requests_in(log) == []


@needs_chromium
def test_click_shows_the_patch_and_its_cam(tmp_path: Path):
    patches = np.zeros((5, 50, 50, 3), np.uint8)
    patches[2] = (200, 40, 40)
    novelty = np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
    page = write_page(tmp_path, hand_map(patches=patches, novelty=novelty))
    answer = ask(
        page,
        "model('patches').selected.indices = [2]; await pause(500);"
        "const middle = (id) => [...document.getElementById(id).getContext('2d')"
        ".getImageData(156, 156, 1, 1).data];"
        "return [text('patch-probability'), text('patch-label'), text('patch-cam'),"
        " text('patch-cell'), text('patch-xy'), middle('patch-tissue'), middle('patch-map'),"
        " text('patch-novelty')]",
    )
    assert answer[:5] == ["0.200", "IDC", "17.0000", "1, 3", "150, 50 px"]
    assert answer[7] == "0.300"
    assert np.abs(np.array(answer[5]) - (200, 40, 40, 255)).max() <= 4  # a JPEG
    # The lower middle of its CAM, 16 of a top of 28.85: red in inferno.
    assert np.abs(np.array(answer[6]) - (207, 68, 70, 255)).max() <= 8


@needs_chromium
def test_controls_change_layers_and_probability(tmp_path: Path):
    unsmoothed = np.array([0.9, 0.1, 0.1, 0.1, 0.1], np.float32)
    patient_map = hand_map(unsmoothed=unsmoothed, unsmoothed_threshold=0.3)
    answer = ask(
        write_page(tmp_path, patient_map),
        "model('cam_on').active = true; model('cam_opacity').value = 0.25;"
        "const cam = model('canvas').renderers.find((r) => r.glyph.image?.field === 'cam');"
        "model('by').active = 1; await pause(300);"
        "return [cam.visible, cam.glyph.global_alpha.value, text('threshold-value'),"
        " text('called-patches'), document.getElementById('mark-unsmoothed').hidden,"
        " model('histogram').renderers.map((bars) => bars.visible)]",
    )
    # Bars of three labels for the probability, and three for the unsmoothed one.
    assert answer == [True, 0.25, "0.300", "1 of 5", False, [False] * 3 + [True] * 3]


@needs_chromium
def test_markup_in_a_name_is_shown_as_text(tmp_path: Path):
    patient_map = hand_map(patient=EVIL, class_names=("</script>" + EVIL, EVIL + "&lt;"))
    answer = ask(
        write_page(tmp_path, patient_map),
        "return [document.querySelector('h1').textContent, document.title, text('patch-label'),"
        " document.images.length, model('patches').data.label_name[1]]",
    )
    heading, label = f"Patient {EVIL}", EVIL + "&lt;"
    assert answer == [heading, f"{heading}: wsi-idc", label, 0, "</script>" + EVIL]
