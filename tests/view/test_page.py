from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.report.browser import needs_chromium
from tests.slides.tiffs import halved, write_scn, write_tiff
from tests.small_maps import EVIL, hand_map, slide_view, write_hand_map
from tests.view.browser import Browser
from tests.view.servers import running
from wsi_idc.maps.map_writer import write_map
from wsi_idc.slides.slide import open_slide
from wsi_idc.view.catalog import read_catalog
from wsi_idc.view.server import HOST

pytestmark = needs_chromium

SIDE_PX = 200  # a cell of 50 px at 4 um/px on a slide of 1 um/px
# Color of the screen at a px of the slide: of the tissue, or of the layers over the tissue.
PROBE = """
    const pane = view.panes[0], {x, y, zoom} = pane.screen;
    const at = (canvas, px, py) => [...canvas.getContext("2d").getImageData(
        Math.floor(x + (px + 0.5) * zoom), Math.floor(y + (py + 0.5) * zoom), 1, 1).data];
    const tissue = (px, py) => at(pane.viewer.drawer.canvas, px, py);
    const layer = (px, py) => at(pane.overlay, px, py);
"""


def make_slide(path: Path, *, rows: int = 10, cols: int = 10) -> np.ndarray:
    """Write a slide of ``rows`` x ``cols`` cells, each with its own color, and a square."""
    rng = np.random.default_rng(2)
    cells = rng.integers(60, 200, (rows, cols, 3)).astype(np.uint8)
    picture = cells.repeat(SIDE_PX, axis=0).repeat(SIDE_PX, axis=1)
    picture[517:549, 1203:1235] = 255  # a square of 32 px
    write_tiff(path, picture, halved(picture), halved(halved(picture)), mpp=1, tile=(256, 256))
    return picture


def write_slide_map(path: Path, file: Path, shape: tuple[int, int], **changes: Any) -> None:
    """Write the map of all cells of a slide; the probability grows from 0 to 1."""
    rows, cols = shape
    row_col = np.stack(np.divmod(np.arange(rows * cols), cols), axis=1).astype(np.int32)
    num = len(row_col)
    view = replace(
        slide_view(), name=file.name, mpp=1.0, bounds=None, width=cols * 200, height=rows * 200
    )
    fields: dict[str, Any] = {
        "source": "slide",
        "mpp_source": "model",
        "provenance": {"data": str(file)},
        "slide": view,
        "row_col": row_col,
        "coords": row_col[:, ::-1] * SIDE_PX,
        "probability": np.linspace(0, 1, num, dtype=np.float32),
        "label": np.resize(np.array([0, 1], np.int8), num),
        "logit": np.zeros((num, 2), np.float32),
        "cam": np.resize(np.array([[[0, 1], [2, 4]]], np.float32), (num, 2, 2)),
        "patches": None,
    }
    path.parent.mkdir(exist_ok=True)
    write_map(path, hand_map(**fields | changes))


def test_tissue_layers_threshold_and_clicks(tmp_path: Path):
    slide = tmp_path / "s.tif"
    picture = make_slide(slide)
    write_slide_map(tmp_path / "maps" / "P1.h5", slide, (10, 10))
    with (
        running(read_catalog([tmp_path / "maps"])) as server,
        Browser(tmp_path) as browser,
    ):
        browser.open(server.address)
        assert server.token not in browser.ask("return location.href")
        # The square of the slide at full resolution, in place and color.
        browser.ask("view.panes[0].move({x: 1219, y: 533, z: 1}, true)")
        browser.wait_for_tiles()
        inside, outside = ((1203, 517), (1234, 548), (1219, 533)), ((1202, 516), (1235, 549))
        found = browser.ask(
            f"{PROBE} return {[*map(list, inside + outside)]}.map((p) => tissue(...p))"
        )
        for (x, y), color in zip(inside + outside, found, strict=True):
            # JPEG keeps the brightness of single px, and the color of 2 x 2 px.
            assert abs(np.mean(color[:3]) - picture[y, x].mean()) < 30, (x, y, color)
        assert np.abs(np.array(found[2][:3]) - 255).max() <= 4

        # The probability covers its cell to the px, and low values are transparent.
        colors = browser.ask(
            f"{PROBE} document.getElementById('layer-called').click();"
            "view.state.probability.opacity = 1; pane.draw();"
            "return [layer(1200, 533), layer(1399, 533), layer(1400, 533)]"
        )
        assert colors[0] == colors[1] != colors[2]
        assert abs(colors[0][3] - 255 * 2 * 26 / 99) <= 2  # probability 26 / 99
        for name in ("cam", "labels", "errors"):
            browser.ask(f"document.getElementById('layer-{name}').click()")
            browser.wait_until("Object.values(view.panes[0].pictures).every((i) => i.complete)")
        shown = browser.ask("return view.layers.filter((name) => view.state[name].isShown)")
        assert shown == ["probability", "cam", "labels", "errors"]
        for name in shown:
            browser.ask(f"document.getElementById('layer-{name}').click()")
        assert browser.ask(f"{PROBE} return layer(1219, 533)") == [0, 0, 0, 0]

        # Keys: the outline of the calls moves with the threshold.
        number = browser.ask("return view.layers.indexOf('called') + 1")
        browser.press(str(number))
        browser.press("t")
        assert browser.ask("return document.activeElement.className") == "threshold-range"
        text = "return document.querySelector('.facts').textContent"
        assert browser.ask(text) == "50 of 100 patches (50.0 %), 2.00 mm² at the map's threshold"
        browser.ask(
            "const range = document.querySelector('.threshold-range'); range.value = 0.262;"
            "range.dispatchEvent(new Event('input'))"
        )
        assert browser.ask(text) == "74 of 100 patches (74.0 %), 2.96 mm²"
        line = browser.ask(f"{PROBE} return layer(1200, 533)")  # between 0.2626 and 0.2525
        assert line[3] == 255

        # A click selects the patch under it.
        x, y = browser.ask(
            f"{PROBE} const box = pane.element.getBoundingClientRect();"
            "return [box.left + x + 1450 * zoom, box.top + y + 590 * zoom]"
        )
        browser.click(x, y)
        browser.wait_until("view.panes[0].selected >= 0")
        facts = browser.ask("return document.getElementById('patch').textContent")
        assert facts == ("row, column2, 7x, y1400, 400 pxprobability0.2727callIDClabelIDC")
        assert browser.ask("return document.querySelector('.readout').textContent") == (
            "row 2, col 7: probability 0.273, called IDC"
        )

        # In a low window, a click also scrolls to the values of the patch.
        size = {"width": 1280, "height": 500, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        bottom = "return document.getElementById('patch-section').getBoundingClientRect().bottom"
        assert browser.ask(bottom) > 500
        browser.click(
            *browser.ask(
                "const box = view.panes[0].element.getBoundingClientRect();"
                "return [box.left + box.width / 2 + 5, box.top + box.height / 2 + 5]"
            )
        )
        browser.wait_until("view.panes[0].columns.col[view.panes[0].selected] !== 7")
        assert browser.ask(bottom) <= 500
        assert browser.problems == []
        assert {address.split("/")[2] for address in browser.requests} == {f"{HOST}:{server.port}"}


def test_the_view_is_restored_and_mistakes_are_visited(tmp_path: Path):
    slide = tmp_path / "s.tif"
    make_slide(slide)
    write_slide_map(tmp_path / "maps" / "P1.h5", slide, (10, 10))
    write_hand_map(tmp_path / "maps", patient=EVIL)
    with (
        running(read_catalog([tmp_path / "maps"])) as server,
        Browser(tmp_path) as browser,
    ):
        browser.open(server.address)
        # The list is sorted by the fraction called IDC; n and p go along the list.
        names = "return view.panes[0].item.name"
        assert browser.ask(names) == EVIL
        browser.press("n")
        browser.wait_until("view.panes[0].map && view.panes[0].item.name === 'P1'")
        browser.press("m")
        browser.wait_for_tiles()
        assert browser.ask("return view.panes[0].selected") == 1  # label 1, probability 0.01
        browser.press("m")
        assert browser.ask("return view.panes[0].selected") == 98  # label 0, probability 0.99
        browser.press("1")
        browser.ask("view.panes[0].setThreshold(0.75)")
        browser.ask("view.panes[0].move({x: 700, y: 900, z: 0.8}, true)")
        browser.wait_for_tiles()
        browser.wait_until("location.hash.includes('t=0.75')")
        address = browser.ask("return location.href")
        assert "left=P1" in address
        browser.call("Page.navigate", url="about:blank")
        browser.open(address)
        place = browser.ask("return view.panes[0].position")
        assert place == pytest.approx({"x": 700, "y": 900, "z": 0.8}, abs=0.01)
        assert browser.ask("return view.panes[0].threshold") == 0.75
        assert browser.ask("return view.state.probability.isShown") is False
        browser.press("0")
        browser.wait_for_tiles()
        place = browser.ask("return view.panes[0].position")
        assert (round(place["x"]), round(place["y"])) == (1000, 1000)
        assert browser.problems == []


def test_two_maps_side_by_side_move_together(tmp_path: Path):
    slide = tmp_path / "s.tif"
    make_slide(slide)
    write_slide_map(tmp_path / "a" / "P1.h5", slide, (10, 10))
    # The second map does not find its slide, and shows its picture of 50 px per cell.
    patches = np.full((100, 50, 50, 3), 90, np.uint8)
    changes = {"provenance": {}, "patches": patches, "threshold": 0.25}
    write_slide_map(tmp_path / "b" / "P1.h5", slide, (10, 10), **changes)
    a, b = "a/P1", "b/P1"
    with (
        running(read_catalog([tmp_path / "a", tmp_path / "b"])) as server,
        Browser(tmp_path) as browser,
    ):
        browser.open(f"{server.address}&left={a}&right={b}")
        browser.wait_until("view.panes.length === 2 && view.panes[1].map")
        browser.wait_for_tiles()
        kinds = "return view.panes.map((pane) => [pane.item.name, pane.map.tissue.kind])"
        assert browser.ask(kinds) == [[a, "slide"], [b, "picture"]]
        browser.ask("view.panes[0].move({x: 800, y: 600, z: 2}, true)")
        browser.wait_for_tiles()
        places = browser.ask("return view.panes.map((pane) => pane.position)")
        assert places[0] == pytest.approx({"x": 800, "y": 600, "z": 2}, abs=0.01)
        assert places[1] == pytest.approx({"x": 200, "y": 150, "z": 0.5}, abs=0.01)
        browser.ask("view.panes[1].move({x: 100, y: 100, z: 0.25}, true)")
        browser.wait_for_tiles()
        place = browser.ask("return view.panes[0].position")
        assert place == pytest.approx({"x": 400, "y": 400, "z": 1}, abs=0.01)
        browser.ask("view.panes[1].select(42)")  # the other map has the patch at the same place
        assert browser.ask("return view.panes.map((pane) => pane.selected)") == [42, 42]
        text = browser.ask("return document.getElementById('patch').textContent")
        assert (text.count("probability0.4242"), text.count("callIDC")) == (2, 1)
        values = browser.ask(
            "return [...document.querySelectorAll('.threshold-range')].map((one) => one.value)"
        )
        assert values == ["0.5", "0.25"]
        note = browser.ask("return document.getElementById('tissue-note').textContent")
        assert "The page shows the picture in the map, not the slide" in note
        browser.ask(
            "const select = document.getElementById('compare'); select.value = '';"
            "select.dispatchEvent(new Event('change'))"
        )
        browser.wait_until("document.querySelectorAll('.pane').length === 1")
        assert browser.problems == []


def test_overlay_and_tissue_agree_at_the_last_cell_of_a_large_grid(tmp_path: Path):
    # 300 x 300 cells of 10.03 px: the side of a cell is not an integer.
    mpp, num = 4 * 50 / 10.03, 300
    side = 50 * 4.0 / mpp
    width = round(num * side)
    edges = np.rint(np.arange(num + 1) * side).astype(int)
    picture = np.zeros((width, width, 3), np.uint8)
    picture[edges[-2] :, edges[-2] :] = 255  # the last cell is white
    cv2.imwrite(str(tmp_path / "s.png"), picture)
    row_col = np.stack(np.divmod(np.arange(num * num), num), axis=1).astype(np.int32)
    coords = np.rint(row_col[:, ::-1] * side).astype(np.int32)
    probability = np.zeros(num * num, np.float32)
    probability[-1] = 1
    write_slide_map(
        tmp_path / "maps" / "P1.h5",
        tmp_path / "s.png",
        (num, num),
        slide=replace(slide_view(), name="s.png", mpp=mpp, width=width, height=width, bounds=None),
        coords=coords,
        row_col=row_col,
        probability=probability,
        cam=None,
    )
    with (
        running(read_catalog([tmp_path / "maps"])) as server,
        Browser(tmp_path) as browser,
    ):
        browser.open(server.address)
        last = int(edges[-2])
        browser.ask(
            f"view.state.called.isShown = false; view.state.probability.opacity = 1;"
            f"view.panes[0].move({{x: {last}, y: {last}, z: 0.125}}, true)"
        )
        browser.wait_for_tiles()
        found = browser.ask(
            f"{PROBE} const steps = [], last = {last};"
            "for (let px = last - 8.5; px < last + 7.5; px += 0.25) "
            "steps.push([tissue(px, last + 5)[0] > 127, layer(px, last + 5)[3] > 127]);"
            "return steps"
        )
        white, covered = (np.argmax(column) for column in np.array(found).T)
        assert white > 0
        assert covered > 0
        assert abs(white - covered) <= 4  # quarters of a px of level 0
        assert browser.problems == []


def test_overlay_and_tissue_agree_on_a_slide_with_bounds(tmp_path: Path):
    # The scanned area begins at x 1000, y 500 of the glass. Its last cell is dark.
    area = np.full((800, 1200, 3), 220, np.uint8)
    area[400:, 800:] = (60, 20, 90)
    slide = write_scn(tmp_path / "s.scn", area, x=1000, y=500, glass=(3000, 2000), mpp=0.5)
    with open_slide(slide) as opened:
        size, bounds = (opened.width, opened.height), opened.bounds
    assert bounds is not None
    corner = np.array([bounds.x, bounds.y])
    row_col = np.argwhere(np.ones((2, 3))).astype(np.int32)
    view = replace(slide_view(), name="s.scn", mpp=0.5, width=size[0], height=size[1])
    write_slide_map(
        tmp_path / "maps" / "P1.h5",
        slide,
        (2, 3),
        slide=replace(view, bounds=bounds),
        coords=(row_col[:, ::-1] * 400 + corner).astype(np.int32),
        probability=np.array([0, 0, 0, 0, 0, 1], np.float32),
        cam=None,
    )
    with (
        running(read_catalog([tmp_path / "maps"])) as server,
        Browser(tmp_path) as browser,
    ):
        browser.open(server.address)
        x, y = int(corner[0]) + 800, int(corner[1]) + 400
        browser.ask(
            f"view.state.called.isShown = false; view.state.probability.opacity = 1;"
            f"view.panes[0].move({{x: {x}, y: {y}, z: 1}}, true)"
        )
        browser.wait_for_tiles()
        across, down = browser.ask(
            f"{PROBE} const across = [], down = [], x0 = {x}, y0 = {y};"
            "const pair = (px, py) => [tissue(px, py)[1] < 120, layer(px, py)[3] > 127];"
            "for (let step = -8; step < 8; step++) {"
            "across.push(pair(x0 + step, y0 + 9)); down.push(pair(x0 + 9, y0 + step));"
            "} return [across, down]"
        )
        for steps in (across, down):
            dark, covered = (int(np.argmax(column)) for column in np.array(steps).T)
            assert dark > 0
            assert covered == 8
            assert abs(dark - covered) <= 1
        assert browser.problems == []


def test_an_item_that_cannot_be_shown_does_not_end_the_page(tmp_path: Path):
    write_tiff(tmp_path / "a.tif", np.full((300, 400, 3), 120, np.uint8))  # states no mpp
    write_tiff(tmp_path / "b.tif", np.full((300, 400, 3), 120, np.uint8), mpp=1)
    with running(read_catalog([tmp_path])) as server, Browser(tmp_path) as browser:
        browser.call("Page.navigate", url=server.address)
        browser.wait_until("globalThis.view && view.panes.length && view.panes[0].item")
        text = "document.querySelector('.message').textContent"
        browser.wait_until(f"{text}.includes('does not state its microns per pixel')")
        browser.press("f")
        browser.press("n")
        browser.wait_until("view.panes[0].map && view.panes[0].item.name === 'b'")
        browser.wait_for_tiles()
        assert browser.ask("return document.querySelector('.message').hidden")
        assert browser.ask("return document.getElementById('threshold-section').hidden")
        (problem,) = browser.problems
        assert "500" in problem


def test_flagged_patches_are_shown_and_left_out_on_demand(tmp_path: Path):
    bits = {"blur": 1, "pen": 2}
    flags = np.array([0, 1, 3, 0, 2], np.uint8)
    write_hand_map(tmp_path / "maps", flags=flags, flag_bits=bits)
    with running(read_catalog([tmp_path / "maps"])) as server, Browser(tmp_path) as browser:
        browser.open(server.address)
        colors = browser.ask(
            "document.getElementById('layer-flags').click();"
            "const grid = view.panes[0].grid('flags'), context = grid.getContext('2d');"
            "return [[1, 0], [2, 1], [3, 1], [1, 2], [3, 3]].map("
            "  ([x, y]) => [...context.getImageData(x, y, 1, 1).data])"
        )
        none, blur, both, also_none, pen = colors
        assert none[3] == also_none[3] == 0
        assert blur != pen == both  # the last of several flags
        assert {blur[3], pen[3]} == {255}
        text = "return document.querySelector('.facts').textContent"
        assert browser.ask(text) == "3 of 5 patches (60.0 %), 0.12 mm² at the map's threshold"
        outline = (
            "return ((pane) => [0, 1, 2, 3, 4].filter((i) => pane.isCounted(i)))(view.panes[0])"
        )
        assert browser.ask(outline) == [0, 1, 2, 3, 4]
        browser.ask("document.querySelector('#thresholds input[type=checkbox]').click()")
        assert browser.ask(text) == "3 of 5 patches (60.0 %), 0.04 mm² at the map's threshold"
        assert browser.ask(outline) == [0, 3]
        browser.ask("view.panes[0].select(2)")
        facts = browser.ask("return document.getElementById('patch').textContent")
        assert facts.endswith("labelIDCflagsblur, pen")
        assert browser.problems == []
