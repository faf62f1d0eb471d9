"""Layout of panels, scale bars, color bars and legends on a page."""

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from numpy.typing import NDArray

from wsi_idc.plotting.colors import INK
from wsi_idc.plotting.raster import Raster
from wsi_idc.plotting.style import PAGE_MM, Page
from wsi_idc.render.panels import (
    BAR_TOP_MM,
    SMALL_PT,
    ColorBar,
    LegendEntry,
    Panel,
    draw_scale_bar,
)

_MAX_COLUMNS = 4
_MAX_HEIGHT_MM = 225.0  # page of a journal, without the space for a caption
_MAX_FRAME_MM = 170.0
_MIN_COLUMN_MM, _MIN_ONLY_COLUMN_MM = 38.0, 100.0
_MARGIN_MM, _GAP_MM = 2.5, 4.0
_TITLE_MM, _FOOT_MM = 4.5, 13.0  # strips above and below a panel
_HEAD_LINE_MM, _ENTRY_MM = 3.2, 3.4
_MAX_ENTRIES = 3  # entries of a legend below each other in the strip
_BAR_MM = 2.2  # height of a color bar
_NAME_PT = 8.5
_LETTER_MM = 1.27  # width of a wide letter of 6.5 pt
_SCALE_SHARE = 0.42  # fraction of the foot width for the scale bar, left of the legend
_FRAME_COLOR = "#b0b0b0"
_RIM_PT = 0.8  # width that the white rim adds to a line


def panel_grid(num: int) -> tuple[int, int]:
    """Return the numbers of rows and columns for ``num`` panels on a page."""
    rows = -(-num // _MAX_COLUMNS)
    return rows, -(-num // rows)


def fit_panel(size: tuple[float, float], num: int) -> tuple[float, float]:
    """Return the largest width and height of a panel in mm, if ``num`` panels are on a page.

    Args:
        size: Width and height of the panel in any unit; only the ratio matters.
        num: Number of panels.
    """
    rows, columns = panel_grid(num)
    width = (PAGE_MM - 2 * _MARGIN_MM - (columns - 1) * _GAP_MM) / columns
    height = (_MAX_HEIGHT_MM - 20) / rows - _TITLE_MM - _FOOT_MM
    scale = min(width / size[0], min(height, _MAX_FRAME_MM) / size[1])
    return size[0] * scale, size[1] * scale


def layout_page(panels: Sequence[Panel], *, name: str, details: Sequence[str]) -> Figure:
    """Draw panels under a heading. The page is at most as wide as the page of a journal.

    Args:
        panels: Panels from left to right, then from top to bottom.
        name: First line of the heading.
        details: Paragraphs below the first line of the heading.
    """
    rows, columns = panel_grid(len(panels))
    sizes = [fit_panel(panel.size, len(panels)) for panel in panels]
    least = _MIN_ONLY_COLUMN_MM if columns == 1 else _MIN_COLUMN_MM
    column = max(least, *(width for width, _ in sizes))
    width = columns * (column + _GAP_MM) - _GAP_MM + 2 * _MARGIN_MM
    letters = int((width - 2 * _MARGIN_MM) / _LETTER_MM)
    lines = [line for text in details for line in textwrap.wrap(text, letters)]
    heights = [
        max(height for _, height in sizes[first : first + columns])
        for first in range(0, len(panels), columns)
    ]
    head = _MARGIN_MM + (1.4 + len(lines)) * _HEAD_LINE_MM + 1
    page = Page(width, head + sum(heights) + rows * (_TITLE_MM + _FOOT_MM) + 1)
    page.text(_MARGIN_MM, _MARGIN_MM, name, fontsize=_NAME_PT, fontweight="bold")
    for number, line in enumerate(lines):
        page.text(_MARGIN_MM, _MARGIN_MM + (1.4 + number) * _HEAD_LINE_MM, line)
    for number, (panel, size) in enumerate(zip(panels, sizes, strict=True)):
        row, col = divmod(number, columns)
        top = head + sum(heights[:row]) + row * (_TITLE_MM + _FOOT_MM)
        left = _MARGIN_MM + col * (column + _GAP_MM)
        page.text(left, top + 0.8, panel.title, fontsize=7)
        ax = page.axes(left, top + _TITLE_MM, *size)
        foot = page.axes(left, top + _TITLE_MM + heights[row], column, _FOOT_MM)
        _draw_panel(ax, foot, panel, size[0], column)
    return page.figure


def _draw_panel(ax: Axes, foot: Axes, panel: Panel, width: float, column: float) -> None:
    ax.add_artist(Raster(panel.picture))
    for entry in panel.legend:
        if entry.ends is not None:
            _draw_lines(ax, entry.ends, entry.color, entry.width_pt)
    ax.set(xlim=(0, panel.size[0]), ylim=(panel.size[1], 0), xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=_FRAME_COLOR)
    foot.set(xlim=(0, column), ylim=(_FOOT_MM, 0))
    foot.set_axis_off()
    legend_left = 0.0
    if panel.has_scale:
        draw_scale_bar(foot, width / (panel.size[0] * panel.unit_mm), width)
        legend_left = _SCALE_SHARE * column
    if panel.color_bar is not None:
        _draw_color_bar(foot, panel.color_bar, legend_left, column)
    _draw_legend(foot, panel.legend, legend_left)


def _draw_lines(ax: Axes, ends: NDArray, color: str, width_pt: float) -> None:
    """Draw lines with a white rim. The rim makes the lines visible on any stain."""
    for line_color, line_pt in (("white", width_pt + _RIM_PT), (color, width_pt)):
        lines = LineCollection(list(ends), colors=line_color, linewidths=line_pt, zorder=3)
        lines.set_capstyle("projecting")  # no gap at the corners of an outline
        lines.set_clip_on(False)  # keeps the full width of lines along the frame
        ax.add_collection(lines, autolim=False)


def _draw_color_bar(foot: Axes, bar: ColorBar, left: float, right: float) -> None:
    """Draw a color bar. Numbers and caption are below the bar; the threshold is above the bar."""
    bottom = BAR_TOP_MM + _BAR_MM
    extent = (left, right, bottom, BAR_TOP_MM)
    foot.imshow(bar.colors[None], extent=extent, aspect="auto", zorder=1)
    foot.set(xlim=(0, right), ylim=(_FOOT_MM, 0))
    at_least = "\N{GREATER-THAN OR EQUAL TO} " if bar.is_open else ""
    middle = (left + right) / 2
    small: dict[str, Any] = {"fontsize": SMALL_PT, "color": INK, "va": "top"}
    foot.text(left, bottom + 0.7, "0", ha="left", **small)
    foot.text(middle, bottom + 0.7, f"{bar.vmax / 2:.2g}", ha="center", **small)
    foot.text(right, bottom + 0.7, f"{at_least}{bar.vmax:.2g}", ha="right", **small)
    foot.text(middle, bottom + 3.4, bar.caption, ha="center", **small)
    if bar.threshold is None or not 0 <= bar.threshold <= bar.vmax:
        return
    position = bar.threshold / bar.vmax
    x, tip = left + position * (right - left), BAR_TOP_MM - 0.1
    foot.add_patch(Polygon([(x, tip), (x - 0.8, tip - 1.2), (x + 0.8, tip - 1.2)], color=INK, lw=0))
    foot.plot([x, x], [BAR_TOP_MM, bottom], color="white", lw=1.4, zorder=2)
    foot.plot([x, x], [BAR_TOP_MM, bottom], color=INK, lw=0.6, zorder=3)
    shift = 1.2 if position < 0.5 else -1.2
    small |= {"ha": "left" if position < 0.5 else "right", "va": "bottom"}
    foot.text(x + shift, tip - 0.1, f"threshold {bar.threshold:.2f}", **small)


def _draw_legend(foot: Axes, entries: Sequence[LegendEntry], left: float) -> None:
    columns = -(-len(entries) // _MAX_ENTRIES)
    start, right = left, foot.get_xlim()[1]
    for number, entry in enumerate(entries):
        column, line = divmod(number, _MAX_ENTRIES)
        left, y = start + column * (right - start) / columns, 2.4 + line * _ENTRY_MM
        if entry.ends is None:
            foot.add_patch(Rectangle((left, y - 1.1), 2.2, 2.2, color=entry.color, lw=0))
        else:
            foot.plot([left, left + 4], [y, y], color=entry.color, lw=entry.width_pt)
        indent = 3.2 if entry.ends is None else 5.2
        foot.text(left + indent, y, entry.name, va="center_baseline", fontsize=SMALL_PT, color=INK)
