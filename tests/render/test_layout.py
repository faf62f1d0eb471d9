import numpy as np
import pytest
from matplotlib.figure import Figure

from wsi_idc.plotting.style import PAGE_MM, page_style
from wsi_idc.render.layout import layout_page, panel_grid
from wsi_idc.render.panels import ColorBar, LegendEntry, Panel

COLORS = np.zeros((256, 3), np.uint8)


def panel(size: tuple[int, int] = (30, 20), **changes) -> Panel:
    return Panel("A title", np.zeros((*size[::-1], 3), np.uint8), size, 0.2, **changes)


def draw(*panels: Panel) -> Figure:
    with page_style():
        return layout_page(panels, name="Patient P", details=["some details", "a notice"])


@pytest.mark.parametrize(
    ("num", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 1, 4), (5, 2, 3), (6, 2, 3), (7, 2, 4)]
)
def test_layout_has_at_most_four_columns(num: int, rows: int, columns: int):
    assert panel_grid(num) == (rows, columns)


@pytest.mark.parametrize("num", range(1, 8))
@pytest.mark.parametrize("size", [(1, 1), (300, 300), (200, 3), (3, 200), (76, 59)])
def test_layout_fits_the_page(num: int, size: tuple[int, int]):
    figure = draw(*[panel(size)] * num)
    width, height = figure.get_size_inches() * 25.4
    box = figure.axes[0].get_position()  # cells are square
    assert box.width * width / size[0] == pytest.approx(box.height * height / size[1])
    assert width <= PAGE_MM + 1e-6
    assert height <= 240
    extents = np.array([ax.get_position().extents for ax in figure.axes])
    assert (extents > -1e-6).all()
    assert (extents < 1 + 1e-6).all()


def test_scale_bar_has_the_length_of_its_label():
    figure = draw(panel((60, 40), has_scale=True))  # 12 mm of tissue
    picture, foot = figure.axes
    (bar,) = foot.patches
    assert [text.get_text() for text in foot.texts] == ["2 mm"]
    on_paper = np.diff(foot.transData.transform([(0, 0), (bar.get_width(), 0)])[:, 0])[0]
    cells = picture.transData.transform([(0, 0), (2 / 0.2, 0)])[:, 0]
    assert on_paper == pytest.approx(np.diff(cells)[0])
    foot = draw(panel((1, 1), has_scale=True)).axes[1]
    assert [text.get_text() for text in foot.texts] == ["50 \N{MICRO SIGN}m"]


def test_color_bar_has_numbers_and_threshold():
    foot = draw(panel(color_bar=ColorBar(COLORS, 1.0, "probability", 0.25))).axes[1]
    texts = [text.get_text() for text in foot.texts]
    assert texts == ["0", "0.5", "1", "probability", "threshold 0.25"]
    left, right = foot.images[0].get_extent()[:2]
    for line in foot.lines:
        assert line.get_xdata() == pytest.approx([left + 0.25 * (right - left)] * 2)
    for threshold in (float("nan"), -1.0, 3.0):
        foot = draw(panel(color_bar=ColorBar(COLORS, 1.0, "probability", threshold))).axes[1]
        assert not foot.lines
    open_bar = ColorBar(COLORS, 0.0784, "raw", is_open=True)
    texts = [text.get_text() for text in draw(panel(color_bar=open_bar)).axes[1].texts]
    assert texts == ["0", "0.039", "\N{GREATER-THAN OR EQUAL TO} 0.078", "raw"]


def test_legend_has_areas_and_lines():
    line = LegendEntry("called", "#0b1f66", np.zeros((1, 2, 2), np.int64), 1.0)
    foot = draw(panel(legend=(LegendEntry("IDC", "#c2410c"), line))).axes[1]
    assert [text.get_text() for text in foot.texts] == ["IDC", "called"]
    assert len(foot.patches) == len(foot.lines) == 1


def test_long_details_are_wrapped_and_dollars_are_text():
    with page_style():
        figure = layout_page([panel()], name="Patient $^$", details=["many words " * 30, "$x$"])
    lines = [text.get_text() for text in figure.texts]
    assert lines[0] == "Patient $^$"
    assert max(map(len, lines)) <= PAGE_MM
    assert " ".join(lines[1:-2]) == ("many words " * 30).strip()
    assert lines[-2:] == ["$x$", "A title"]
    assert not any(text.get_parse_math() for text in figure.texts)
