"""Layout of panels on a page: sizes in mm, text in print size."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from wsi_idc.plotting.raster import Raster
from wsi_idc.plotting.style import INK, PAGE_MM, Page
from wsi_idc.render.panels import ColorBar, LegendEntry, Outline, Panel

_MAX_COLUMNS = 4
_MAX_HEIGHT_MM = 225.0  # page without the journal's caption
_MAX_FRAME_MM = 170.0
_MIN_COLUMN_MM, _MIN_ONLY_COLUMN_MM = 38.0, 100.0
_MARGIN_MM, _GAP_MM = 2.5, 4.0
_TITLE_MM, _FOOT_MM = 4.5, 13.0  # strips above and below a panel
_HEAD_LINE_MM, _ENTRY_MM = 3.2, 3.4
_BAR_TOP_MM, _BAR_MM = 3.6, 2.2
_NAME_PT, _SMALL_PT = 8.5, 6.0
_LETTER_MM = 1.27  # width of a wide letter of 6.5 pt
_SCALE_SHARE = 0.42  # part of the foot left of the legend, for the scale bar
_FRAME_COLOR = "#b0b0b0"
_RIM_PT = 0.8  # both sides of a line together


@dataclass(frozen=True)
class PanelLayout:
    """Rows, columns and sizes of ``num`` panels on a page."""

    num: int

    @property
    def rows(self) -> int:
        """Rows of panels."""
        return -(-self.num // _MAX_COLUMNS)

    @property
    def columns(self) -> int:
        """Columns of panels."""
        return -(-self.num // self.rows)

    def fit(self, size: tuple[float, float]) -> tuple[float, float]:
        """Return width and height in mm on the page of a panel of a size in any unit."""
        free = PAGE_MM - 2 * _MARGIN_MM - (self.columns - 1) * _GAP_MM
        height = (_MAX_HEIGHT_MM - 20) / self.rows - _TITLE_MM - _FOOT_MM
        width, height = free / self.columns, min(height, _MAX_FRAME_MM)
        scale = min(width / size[0], height / size[1])
        return size[0] * scale, size[1] * scale


def layout_page(panels: Sequence[Panel], *, name: str, details: Sequence[str]) -> Figure:
    """Draw panels under a heading, at most as wide as a journal's page.

    Args:
        panels: Panels from left to right, then from top to bottom.
        name: First line of the heading.
        details: Paragraphs below it.
    """
    layout = PanelLayout(len(panels))
    sizes = [layout.fit(panel.size) for panel in panels]
    least = _MIN_ONLY_COLUMN_MM if layout.columns == 1 else _MIN_COLUMN_MM
    column = max(least, *(width for width, _ in sizes))
    width = layout.columns * (column + _GAP_MM) - _GAP_MM + 2 * _MARGIN_MM
    letters = int((width - 2 * _MARGIN_MM) / _LETTER_MM)
    lines = [line for text in details for line in textwrap.wrap(text, letters)]
    heights = [
        max(height for _, height in sizes[first : first + layout.columns])
        for first in range(0, len(panels), layout.columns)
    ]
    head = _MARGIN_MM + (1.4 + len(lines)) * _HEAD_LINE_MM + 1
    page = Page(width, head + sum(heights) + layout.rows * (_TITLE_MM + _FOOT_MM) + 1)
    page.text(_MARGIN_MM, _MARGIN_MM, name, fontsize=_NAME_PT, fontweight="bold")
    for number, line in enumerate(lines):
        page.text(_MARGIN_MM, _MARGIN_MM + (1.4 + number) * _HEAD_LINE_MM, line)
    for number, (panel, size) in enumerate(zip(panels, sizes, strict=True)):
        row, col = divmod(number, layout.columns)
        top = head + sum(heights[:row]) + row * (_TITLE_MM + _FOOT_MM)
        left = _MARGIN_MM + col * (column + _GAP_MM)
        _draw_panel(page, panel, size, left, top, column, heights[row])
    return page.figure


def nice_length(span: float) -> float:
    """Return the largest of 1, 2, 5 times a power of ten that is at most a third of ``span``."""
    power = 10.0 ** np.floor(np.log10(span / 3))
    return float(max(step * power for step in (1, 2, 5) if step * power <= span / 3))


def _draw_panel(
    page: Page,
    panel: Panel,
    size: tuple[float, float],
    left: float,
    top: float,
    column: float,
    height: float,
) -> None:
    """Draw title, picture and foot of a panel; ``left`` and ``top`` are in mm."""
    page.text(left, top + 0.8, panel.title, fontsize=7)
    ax = page.axes(left, top + _TITLE_MM, *size)
    _draw_picture(ax, panel)
    foot = page.axes(left, top + _TITLE_MM + height, column, _FOOT_MM)
    foot.set(xlim=(0, column), ylim=(_FOOT_MM, 0))
    foot.set_axis_off()
    legend_left = 0.0
    if panel.has_scale:
        width, _ = size
        _draw_scale_bar(foot, width / (panel.size[0] * panel.unit_mm), width)
        legend_left = _SCALE_SHARE * column
    if isinstance(panel.legend, ColorBar):
        _draw_color_bar(foot, panel.legend, legend_left, column)
    else:
        _draw_legend(foot, panel.legend, legend_left)


def _draw_picture(ax: Axes, panel: Panel) -> None:
    """Draw a picture and its outlines in the panel's unit, from the top left corner."""
    width, height = panel.size
    Raster.add_to(ax, panel.picture)
    for outline in panel.outlines:
        _draw_outline(ax, outline)
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=_FRAME_COLOR)


def _draw_outline(ax: Axes, outline: Outline) -> None:
    """Draw lines with a white rim, which makes them visible on any stain."""
    for width_pt, color in (
        (outline.width_pt + _RIM_PT, "white"),
        (outline.width_pt, outline.color),
    ):
        lines = LineCollection(
            list(outline.ends),
            colors=color,
            linewidths=width_pt,
            capstyle="projecting",  # closes the corners
            clip_on=False,  # keeps the full width of lines along the frame
            zorder=3,
        )
        ax.add_collection(lines, autolim=False)


def _draw_scale_bar(foot: Axes, page_mm: float, width: float) -> None:
    """Draw a bar of a round length; ``page_mm`` is the length on the page of a mm of tissue."""
    length = nice_length(width / page_mm)
    foot.add_patch(Rectangle((0, _BAR_TOP_MM), length * page_mm, 0.8, color=INK, linewidth=0))
    text = f"{length:g} mm" if length >= 0.1 else f"{1000 * length:g} \N{MICRO SIGN}m"
    foot.text(0, _BAR_TOP_MM + 1.6, text, va="top", fontsize=_SMALL_PT, color=INK)


def _draw_color_bar(foot: Axes, bar: ColorBar, left: float, right: float) -> None:
    """Draw a color bar with numbers and caption below and the threshold above."""
    bottom = _BAR_TOP_MM + _BAR_MM
    extent = (left, right, bottom, _BAR_TOP_MM)
    foot.imshow(bar.colors[None], extent=extent, aspect="auto", zorder=1)
    foot.set(xlim=(0, right), ylim=(_FOOT_MM, 0))
    at_least = "\N{GREATER-THAN OR EQUAL TO} " if bar.is_open else ""
    ticks = {
        0.0: ("0", "left"),
        0.5: (f"{bar.vmax / 2:.2g}", "center"),
        1.0: (f"{at_least}{bar.vmax:.2g}", "right"),
    }
    small: dict[str, Any] = {"fontsize": _SMALL_PT, "color": INK, "va": "top"}
    for position, (text, side) in ticks.items():
        foot.text(left + position * (right - left), bottom + 0.7, text, ha=side, **small)
    foot.text((left + right) / 2, bottom + 3.4, bar.caption, ha="center", **small)
    if bar.threshold is not None and 0 <= bar.threshold <= bar.vmax:
        _mark_threshold(foot, bar.threshold, bar.threshold / bar.vmax, left, right)


def _mark_threshold(
    foot: Axes, threshold: float, position: float, left: float, right: float
) -> None:
    x, tip = left + position * (right - left), _BAR_TOP_MM - 0.1
    foot.add_patch(Polygon([(x, tip), (x - 0.8, tip - 1.2), (x + 0.8, tip - 1.2)], color=INK, lw=0))
    foot.plot([x, x], [_BAR_TOP_MM, _BAR_TOP_MM + _BAR_MM], color="white", lw=1.4, zorder=2)
    foot.plot([x, x], [_BAR_TOP_MM, _BAR_TOP_MM + _BAR_MM], color=INK, lw=0.6, zorder=3)
    side, shift = ("left", 1.2) if position < 0.5 else ("right", -1.2)
    text = f"threshold {threshold:.2f}"
    foot.text(x + shift, tip - 0.1, text, ha=side, va="bottom", fontsize=_SMALL_PT, color=INK)


def _draw_legend(foot: Axes, entries: Sequence[LegendEntry], left: float) -> None:
    for number, entry in enumerate(entries):
        y = 2.4 + number * _ENTRY_MM
        if entry.width_pt is None:
            foot.add_patch(Rectangle((left, y - 1.1), 2.2, 2.2, color=entry.color, lw=0))
        else:
            foot.plot([left, left + 4], [y, y], color=entry.color, lw=entry.width_pt)
        indent = 3.2 if entry.width_pt is None else 5.2
        foot.text(left + indent, y, entry.name, va="center_baseline", fontsize=_SMALL_PT, color=INK)
