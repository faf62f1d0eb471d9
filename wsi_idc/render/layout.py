"""Lay panels out on a page: sizes in mm, text in print size."""

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
_MAX_HEIGHT_MM = 225.0  # of a page, without its legend
_MAX_FRAME_MM = 170.0
_MIN_COLUMN_MM, _MIN_ONLY_COLUMN_MM = 38.0, 100.0
_MARGIN_MM, _GAP_MM = 2.5, 4.0
_TITLE_MM, _FOOT_MM = 4.5, 13.0  # above and below a panel
_HEAD_LINE_MM, _ENTRY_MM = 3.2, 3.4
_BAR_TOP_MM, _BAR_MM = 3.6, 2.2
_NAME_PT, _SMALL_PT = 8.5, 6.0
_LETTER_MM = 1.27  # a letter of 6.5 pt, on the wide side
_SCALE_SHARE = 0.42  # of the foot, where there is a key as well
_FRAME_COLOUR = "#b0b0b0"
_RIM_PT = 0.8  # both sides of a line together


@dataclass(frozen=True)
class PanelLayout:
    """Where ``num`` panels go: how many side by side, and how large each may be."""

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
        """Return width and height in mm on the page of what has a size in any unit."""
        free = PAGE_MM - 2 * _MARGIN_MM - (self.columns - 1) * _GAP_MM
        height = (_MAX_HEIGHT_MM - 20) / self.rows - _TITLE_MM - _FOOT_MM
        width, height = free / self.columns, min(height, _MAX_FRAME_MM)
        scale = min(width / size[0], height / size[1])
        return size[0] * scale, size[1] * scale


def layout_page(panels: Sequence[Panel], *, name: str, details: Sequence[str]) -> Figure:
    """Return a figure of panels under a heading, at most as wide as a journal's page.

    Args:
        panels: From left to right, then from top to bottom.
        name: First line of the heading.
        details: Paragraphs below it.
    """
    places = PanelLayout(len(panels))
    sizes = [places.fit(panel.size) for panel in panels]
    least = _MIN_ONLY_COLUMN_MM if places.columns == 1 else _MIN_COLUMN_MM
    column = max(least, *(width for width, _ in sizes))
    width = places.columns * (column + _GAP_MM) - _GAP_MM + 2 * _MARGIN_MM
    letters = int((width - 2 * _MARGIN_MM) / _LETTER_MM)
    lines = [line for text in details for line in textwrap.wrap(text, letters)]
    heights = [
        max(height for _, height in sizes[first : first + places.columns])
        for first in range(0, len(panels), places.columns)
    ]
    head = _MARGIN_MM + (1.4 + len(lines)) * _HEAD_LINE_MM + 1
    page = Page(width, head + sum(heights) + places.rows * (_TITLE_MM + _FOOT_MM) + 1)
    page.text(_MARGIN_MM, _MARGIN_MM, name, fontsize=_NAME_PT, fontweight="bold")
    for number, line in enumerate(lines):
        page.text(_MARGIN_MM, _MARGIN_MM + (1.4 + number) * _HEAD_LINE_MM, line)
    for number, (panel, size) in enumerate(zip(panels, sizes, strict=True)):
        row, place = divmod(number, places.columns)
        top = head + sum(heights[:row]) + row * (_TITLE_MM + _FOOT_MM)
        left = _MARGIN_MM + place * (column + _GAP_MM)
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
    """Draw title, picture and foot of a panel, its column's top left corner at a place in mm."""
    page.text(left, top + 0.8, panel.title, fontsize=7)
    ax = page.axes(left, top + _TITLE_MM, *size)
    _draw_picture(ax, panel)
    foot = page.axes(left, top + _TITLE_MM + height, column, _FOOT_MM)
    foot.set(xlim=(0, column), ylim=(_FOOT_MM, 0))
    foot.set_axis_off()
    key_left = 0.0
    if panel.has_scale:
        width, _ = size
        _draw_scale_bar(foot, width / (panel.size[0] * panel.unit_mm), width)
        key_left = _SCALE_SHARE * column
    if isinstance(panel.key, ColorBar):
        _draw_bar(foot, panel.key, key_left, column)
    else:
        _draw_legend(foot, panel.key, key_left)


def _draw_picture(ax: Axes, panel: Panel) -> None:
    """Draw a picture and its outlines in the panel's unit, from the top left corner."""
    width, height = panel.size
    Raster.add_to(ax, panel.picture)
    for lines in panel.outlines:
        _draw_outline(ax, lines)
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=_FRAME_COLOUR)


def _draw_outline(ax: Axes, lines: Outline) -> None:
    """Draw lines with a white rim, which sets them off from any stain."""
    for width_pt, colour in ((lines.width_pt + _RIM_PT, "white"), (lines.width_pt, lines.colour)):
        drawn = LineCollection(
            list(lines.ends),
            colors=colour,
            linewidths=width_pt,
            capstyle="projecting",  # closes the corners
            clip_on=False,  # along the frame, too, a line is as wide as it should be
            zorder=3,
        )
        ax.add_collection(drawn, autolim=False)


def _draw_scale_bar(foot: Axes, page_mm: float, width: float) -> None:
    """Draw a bar of a round length; ``page_mm`` is what a mm of tissue is on the page."""
    length = nice_length(width / page_mm)
    foot.add_patch(Rectangle((0, _BAR_TOP_MM), length * page_mm, 0.8, color=INK, linewidth=0))
    foot.text(0, _BAR_TOP_MM + 1.6, _length(length), va="top", fontsize=_SMALL_PT, color=INK)


def _length(length_mm: float) -> str:
    return f"{length_mm:g} mm" if length_mm >= 0.1 else f"{1000 * length_mm:g} \N{MICRO SIGN}m"


def _draw_bar(foot: Axes, bar: ColorBar, left: float, right: float) -> None:
    """Draw a colour bar with its numbers and caption below, and the threshold above."""
    bottom = _BAR_TOP_MM + _BAR_MM
    foot.imshow(
        bar.colours[None], extent=(left, right, bottom, _BAR_TOP_MM), aspect="auto", zorder=1
    )
    foot.set(xlim=(0, right), ylim=(_FOOT_MM, 0))
    at_least = "\N{GREATER-THAN OR EQUAL TO} " if bar.is_open else ""
    ticks = {
        0.0: ("0", "left"),
        0.5: (f"{bar.top / 2:.2g}", "center"),
        1.0: (f"{at_least}{bar.top:.2g}", "right"),
    }
    small: dict[str, Any] = {"fontsize": _SMALL_PT, "color": INK, "va": "top"}
    for share, (text, side) in ticks.items():
        foot.text(left + share * (right - left), bottom + 0.7, text, ha=side, **small)
    foot.text((left + right) / 2, bottom + 3.4, bar.caption, ha="center", **small)
    if bar.threshold is not None and 0 <= bar.threshold <= bar.top:
        _mark_threshold(
            foot, bar.threshold, left + bar.threshold / bar.top * (right - left), left, right
        )


def _mark_threshold(foot: Axes, threshold: float, x: float, left: float, right: float) -> None:
    tip = _BAR_TOP_MM - 0.1
    foot.add_patch(Polygon([(x, tip), (x - 0.8, tip - 1.2), (x + 0.8, tip - 1.2)], color=INK, lw=0))
    foot.plot([x, x], [_BAR_TOP_MM, _BAR_TOP_MM + _BAR_MM], color="white", lw=1.4, zorder=2)
    foot.plot([x, x], [_BAR_TOP_MM, _BAR_TOP_MM + _BAR_MM], color=INK, lw=0.6, zorder=3)
    share = (x - left) / (right - left)
    side, shift = ("left", 1.2) if share < 0.5 else ("right", -1.2)
    text = f"threshold {threshold:.2f}"
    foot.text(x + shift, tip - 0.1, text, ha=side, va="bottom", fontsize=_SMALL_PT, color=INK)


def _draw_legend(foot: Axes, entries: Sequence[LegendEntry], left: float) -> None:
    for number, entry in enumerate(entries):
        y = 2.4 + number * _ENTRY_MM
        if entry.width_pt is None:
            foot.add_patch(Rectangle((left, y - 1.1), 2.2, 2.2, color=entry.colour, lw=0))
        else:
            foot.plot([left, left + 4], [y, y], color=entry.colour, lw=entry.width_pt)
        indent = 3.2 if entry.width_pt is None else 5.2
        foot.text(left + indent, y, entry.name, va="center_baseline", fontsize=_SMALL_PT, color=INK)
