import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image

from tests.small_maps import SHADES, slide_view, written
from wsi_idc import NOTICE
from wsi_idc.core.errors import MapError
from wsi_idc.maps.map_reader import read_map
from wsi_idc.plotting.style import page_style
from wsi_idc.render.render import (
    FORMATS,
    VIEWS,
    figure_of,
    figure_of_slides,
    read_panel_input,
    render_map,
)

SIDE = 300
CORNERS = [(0, 0), (0, SIDE - 1), (SIDE - 1, 0), (SIDE - 1, SIDE - 1)]
FLAGGED = {"flags": np.array([0, 1, 2, 3], np.uint8), "flag_bits": {"blur": 1, "pen": 2}}
CALLED = np.rint(np.multiply(to_rgb("#0b1f66"), 255))


def pixels_of(path: Path, view: str, *, dpi: int) -> tuple[np.ndarray, Axes]:
    """Return a figure's pixels, shape (h, w, 3), and the axes of its first picture."""
    with page_style():
        figure = figure_of(path, view=view, dpi=dpi)
        figure.set_dpi(dpi)
        for ax in figure.axes:
            ax.spines[:].set_visible(False)  # the frame covers part of the outermost cells
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int), figure.axes[0]


def pixel_box(ax: Axes, cell: tuple[int, int], num_rows: int) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of a cell in px of the figure, from its top left corner."""
    row, col = cell
    (left, top), (right, bottom) = ax.transData.transform([(col, row), (col + 1, row + 1)])
    return left, num_rows - top, right, num_rows - bottom


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a map of 300 x 300 cells with a patch in each corner, all called IDC."""
    folder = tmp_path_factory.mktemp("large")
    return written(folder, cells=CORNERS, probability=np.ones(4, np.float32))


@pytest.mark.parametrize("view", ["overlay", "cam", "side-by-side"])
def test_grid_of_300_cells_does_not_drift(large: Path, view: str):
    dpi = 900 if view == "side-by-side" else 300  # some px a cell
    pixels, ax = pixels_of(large, view, dpi=dpi)
    for cell in CORNERS:
        left, top, right, bottom = pixel_box(ax, cell, len(pixels))
        assert 4 < right - left < 7
        inside = pixels[round(top) + 1 : round(bottom) - 1, round(left) + 1 : round(right) - 1]
        assert inside.size > 0
        assert (inside.min(axis=2) < 250).all()
        row, col = (round(top + bottom) // 2, round(left + right) // 2)
        towards = {0: 6, SIDE - 1: -6}  # a cell further to the middle of the grid, there is none
        assert (pixels[row + towards[cell[0]], col] == 255).all()
        assert (pixels[row, col + towards[cell[1]]] == 255).all()


def test_outlines_follow_the_last_cell(large: Path):
    pixels, ax = pixels_of(large, "contours", dpi=300)
    left, top, right, bottom = pixel_box(ax, (SIDE - 1, SIDE - 1), len(pixels))
    middle = round((top + bottom) / 2), round((left + right) / 2)
    edges = [(middle[0], left), (middle[0], right), (top, middle[1]), (bottom, middle[1])]
    for row, col in edges:
        around = pixels[int(row) - 1 : int(row) + 2, int(col) - 1 : int(col) + 2]
        assert abs(around - CALLED).max(axis=2).min() < 12


def test_tissue_is_cropped_and_a_missing_one_gray(tmp_path: Path):
    cells = [(2, 3), (3, 5)]
    path = written(tmp_path, cells=cells)
    panel_input = read_panel_input(path, read_map(path), dpi=30)
    assert panel_input.patient_map.shape == (2, 3)
    assert panel_input.patient_map.row_col.tolist() == [[0, 0], [1, 2]]
    assert panel_input.cell_px == 10  # never more than there is
    assert panel_input.tissue.shape == (20, 30, 3)
    assert (panel_input.tissue[:10, :10] == SHADES[0]).all()
    assert (panel_input.tissue[10:, 20:] == SHADES[1]).all()
    assert (panel_input.tissue[:10, 10:] == 255).all()
    path = written(tmp_path, patches=None)
    panel_input = read_panel_input(path, read_map(path), dpi=30)
    assert not panel_input.has_image
    assert (panel_input.tissue[10:] == 214).all()
    assert (panel_input.tissue[:10, :10] == 255).all()


def test_tissue_is_no_finer_than_the_page(large: Path):
    panel_input = read_panel_input(large, read_map(large), dpi=150)
    assert panel_input.cell_px == 4  # 170 mm are 1004 px
    assert panel_input.tissue.shape == (1200, 1200, 3)
    assert (panel_input.tissue[-4:, -4:] == SHADES[3]).all()
    assert (panel_input.tissue[-4:, -5] == 255).all()


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_drawn_as_the_same_png_and_pdf_each_time(tmp_path: Path, view: str):
    path = written(tmp_path, **FLAGGED)
    files = [[tmp_path / "pictures" / f"{n}.{kind}" for kind in FORMATS] for n in (1, 2)]
    for outs in files:
        render_map(path, *outs, view=view, dpi=100)
    with Image.open(files[0][0]) as picture:
        assert 300 < picture.width <= 180 / 25.4 * 100 + 1
        assert picture.info["dpi"] == pytest.approx((100, 100), abs=0.1)
    assert files[0][1].read_bytes().startswith(b"%PDF-")
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes()
    names = sorted(path.name for path in files[0][0].parent.iterdir())
    assert names == ["1.pdf", "1.png", "2.pdf", "2.png"]
    render_map(written(tmp_path, patches=None, **FLAGGED), files[0][0], view=view, dpi=60)
    assert files[0][0].read_bytes() != files[1][0].read_bytes()


def test_pdf_has_vector_outlines_and_text(tmp_path: Path):
    render_map(written(tmp_path), tmp_path / "p.pdf", view="contours", dpi=100)
    pdf = (tmp_path / "p.pdf").read_bytes()
    assert len(re.findall(rb"/Subtype /Image", pdf)) == 1  # the tissue
    width = int(re.search(rb"/Width (\d+)", pdf)[1])
    assert width == pytest.approx(175 / 25.4 * 100, abs=1)  # at the dpi asked for
    streams = [
        zlib.decompress(part)
        for part in re.findall(rb"FlateDecode\s*>>\s*stream\n(.*?)\nendstream", pdf, re.S)
    ]
    (page,) = [stream for stream in streams if b"BT" in stream]
    assert page.count(b" l\n") > 8
    assert page.count(b"BT") > 5
    assert b"/FontFile2" in pdf
    assert b"Date" not in pdf


def test_views_have_titles_and_a_notice(tmp_path: Path):
    values = np.ones(4, np.float32)
    path = written(
        tmp_path,
        slide=slide_view(),
        unsmoothed=values,
        unsmoothed_threshold=0.5,
        novelty=values,
        **FLAGGED,
    )
    titles = {}
    for view in VIEWS:
        with page_style():
            lines = [text.get_text() for text in figure_of(path, view=view, dpi=60).texts]
        assert lines[:3] == [
            "Patient P1",
            "4 patches, 50% called IDC at threshold 0.50; 0.5 µm/px (file), patches "
            "at 4 µm/px; model cnn; a test patient of the model",
            NOTICE,
        ]
        titles[view] = lines[3:]
    assert titles == {
        "panels": [
            *("Slide", "Tissue", "Probability of IDC", "Probability, not smoothed"),
            *("Grad-CAM of IDC", "Labels"),
        ],
        "overlay": ["Probability over tissue"],
        "contours": ["Tissue and outlines"],
        "cam": ["Grad-CAM over tissue"],
        "quality": ["Tissue", "Novelty", "Flags"],
        "side-by-side": ["Tissue", "Probability over tissue", "Grad-CAM over tissue", "Labels"],
    }


def test_missing_layers_have_no_panel(tmp_path: Path):
    path = written(tmp_path, cam=None, label=np.full(4, -1, np.int8))
    with page_style():
        for view, num in (("panels", 2), ("side-by-side", 2), ("contours", 1)):
            assert len(figure_of(path, view=view, dpi=60).axes) == 2 * num  # with its foot
    with pytest.raises(MapError, match="has no CAM"):
        render_map(path, tmp_path / "p.png", view="cam")
    with pytest.raises(MapError, match="has neither novelty nor quality flags"):
        render_map(path, tmp_path / "p.png", view="quality")


def test_threshold_changes_calls_and_outlines(tmp_path: Path):
    path = written(tmp_path)
    with page_style():
        figure = figure_of(path, view="contours", dpi=60, threshold=0.75)
    assert "25% called IDC at threshold 0.75" in figure.texts[1].get_text()
    called = figure.axes[0].collections[-1]
    assert len(called.get_segments()) == 4
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert "called IDC, shaded (\N{GREATER-THAN OR EQUAL TO} 0.75)" in texts


# A PDF embeds its fonts, which takes seconds; this view has most of the texts.
@pytest.mark.parametrize(("suffix", "views"), [("png", VIEWS), ("pdf", ["contours"])])
def test_text_of_a_map_is_drawn_as_text(tmp_path: Path, suffix: str, views: Iterable[str]):
    path = written(
        tmp_path,
        patient="P$^$ \u60a3\U0001f600" + "W" * 60,
        class_names=("$a$\n", "$^$" * 99),
        model={"architecture": "x\ty" * 99, "role_of_patient": {"$^$": None}},
        mpp_source="$" * 500,
        cam_method="$^$",
        **FLAGGED,
    )
    for view in views:
        render_map(path, tmp_path / f"{view}.{suffix}", view=view, dpi=40)
        assert (tmp_path / f"{view}.{suffix}").stat().st_size > 0


def test_other_file_is_refused_and_nothing_written(tmp_path: Path):
    (tmp_path / "x.h5").write_text("no map")
    with pytest.raises(MapError, match="not a usable map"):
        render_map(tmp_path / "x.h5", tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]


def test_a_page_has_space_for_24_slides(tmp_path: Path):
    path = written(tmp_path)
    with page_style():
        figure = figure_of_slides({f"s{n}": path for n in range(24)}, patient="P1", dpi=30)
    assert figure.get_figheight() * 25.4 < 230  # mm
    titles = [text.get_text() for text in figure.texts]
    assert titles == [
        "Patient P1: Probability over tissue",
        "24 slides",
        NOTICE,
        *(f"s{n}" for n in range(24)),
    ]
    with pytest.raises(MapError, match="patient P1 has 25 slides, but a page has space for 24"):
        figure_of_slides({str(n): path for n in range(25)}, patient="P1")


def test_the_reason_of_a_caution_is_on_the_page_of_its_slide(tmp_path: Path):
    novel = {"novelty": np.ones(4, np.float32), "novelty_limit": 0.5}
    paths = {"a": written(tmp_path / "a"), "b": written(tmp_path / "b", **novel)}
    with page_style():
        figure = figure_of_slides(paths, patient="P1", view="contours", dpi=30)
    titles = [text.get_text() for text in figure.texts]
    assert titles[2] == "CAUTION: the picture of a marked slide has the reason."
    assert titles[-2:] == ["a", "b (CAUTION)"]
