"""``wsi-idc render``: views of a map, PNG for the screen and PDF for print.

Panels are laid out in mm and their text has print size.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from numpy.typing import NDArray

from wsi_idc import NOTICE
from wsi_idc.core.errors import MapError
from wsi_idc.maps.layers import crop_to_patches, has_labels
from wsi_idc.maps.map_reader import read_image_rows, read_map
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.raster import Pixels, Raster, downscale
from wsi_idc.plotting.style import (
    INK,
    PAGE_MM,
    Page,
    page_style,
    printable,
    save_pdf,
    save_png,
    to_px,
)
from wsi_idc.render.panels import PANELS, ColorBar, LegendEntry, Panel, PanelInput

DEFAULT_DPI = 300
DEFAULT_VIEW = "panels"
_SAVE = {".png": save_png, ".pdf": save_pdf}
FORMATS = tuple(suffix[1:] for suffix in _SAVE)
VIEWS = {
    DEFAULT_VIEW: ("slide", "tissue", "probability", "smoothed", "uncertainty", "cam", "labels"),
    "overlay": ("probability over tissue",),
    "contours": ("outlines",),
    "cam": ("cam over tissue",),
    "side-by-side": ("tissue", "probability over tissue", "cam over tissue", "labels"),
}
_LONGEST = 40
_WHITE, _NO_IMAGE = 255, 214
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


def render_map(
    path: Path,
    *outs: Path,
    view: str = DEFAULT_VIEW,
    dpi: int = DEFAULT_DPI,
    threshold: float | None = None,
) -> None:
    """Draw a view of the map file ``path`` into each of ``outs``.

    Args:
        path: The map file.
        outs: Files with the suffix .png or .pdf, each replaced in one atomic step.
        view: One of ``VIEWS``.
        dpi: Resolution of the PNG, and of the pictures in the PDF.
        threshold: Probability from which a patch is called IDC; None takes the map's own.

    Raises:
        MapError: The map cannot be read, or has nothing to show in this view.
    """
    with page_style():
        figure = figure_of(path, view=view, dpi=dpi, threshold=threshold)
        for out in outs:
            _SAVE[out.suffix](figure, out, dpi=dpi)


def picture_name(path: Path, *, view: str, suffix: str) -> str:
    """Return the file name of a view of a map file."""
    view_suffix = "" if view == DEFAULT_VIEW else f"-{view}"
    return f"{path.stem}{view_suffix}.{suffix}"


def figure_of(
    path: Path, *, view: str = DEFAULT_VIEW, dpi: int = DEFAULT_DPI, threshold: float | None = None
) -> Figure:
    """Return the figure that ``render_map`` writes; call it inside ``page_style``.

    Raises:
        MapError: The map cannot be read, or has nothing to show in this view.
    """
    patient_map = read_map(path)
    if view == "cam" and patient_map.cam is None:
        raise MapError(
            f"{path}: made without a CAM; leave out --view cam, or make the map again with a CAM"
        )
    names = [name for name in VIEWS[view] if _has_panel(patient_map, name)]
    panel_input = read_panel_input(
        path, patient_map, num_panels=len(names), dpi=dpi, threshold=threshold
    )
    panels = [PANELS[name](panel_input) for name in names]
    if len(panels) == 1:
        panels = [replace(panels[0], has_scale=True)]
    name = f"Patient {printable(patient_map.patient, longest=_LONGEST)}"
    return layout_page(panels, name=name, details=[_details(panel_input), NOTICE])


def read_panel_input(
    path: Path,
    patient_map: PatientMap,
    *,
    num_panels: int = 1,
    dpi: int = DEFAULT_DPI,
    threshold: float | None = None,
) -> PanelInput:
    """Read the input of the panels, with no more tissue than they can show.

    Args:
        path: The map file.
        patient_map: The map, as ``read_map`` returns it.
        num_panels: Number of panels on the page.
        dpi: Resolution of the page.
        threshold: Probability from which a patch is called IDC; None takes the map's own.
    """
    first_row, first_col = patient_map.row_col.min(axis=0)
    cropped = crop_to_patches(patient_map)
    rows, cols = cropped.shape
    width, _ = _fit_panel((cols, rows), num_panels)
    cell_px = int(np.clip(np.ceil(to_px(width, dpi=dpi) / cols), 1, patient_map.cell_px))
    strips = [
        # Each row of cells is shrunk by itself, so that no cell is shifted.
        downscale(strip[:, first_col * cropped.cell_px :], height=cell_px, width=cols * cell_px)
        for strip in islice(read_image_rows(path), first_row, None)
    ]
    return PanelInput(
        patient_map=cropped,
        tissue=np.concatenate(strips) if strips else _gray_patches(cropped, cell_px),
        has_image=bool(strips),
        cell_px=cell_px,
        threshold=patient_map.threshold if threshold is None else threshold,
    )


def _has_panel(patient_map: PatientMap, name: str) -> bool:
    if name == "labels":
        return has_labels(patient_map)
    needed = {"cam over tissue": "cam"}.get(name, name)
    return getattr(patient_map, needed, True) is not None


def _gray_patches(patient_map: PatientMap, cell_px: int) -> Pixels:
    cells = np.full((*patient_map.shape, 3), _WHITE, np.uint8)
    cells[tuple(patient_map.row_col.T)] = _NO_IMAGE
    return cells.repeat(cell_px, axis=0).repeat(cell_px, axis=1)


def _details(panel_input: PanelInput) -> str:
    patient_map, model = panel_input.patient_map, panel_input.patient_map.model
    num = len(patient_map.probability)
    called = (patient_map.probability >= panel_input.threshold).mean()
    architecture = printable(model.get("architecture"), longest=_LONGEST)
    role = printable(model.get("role_of_patient"), longest=_LONGEST)
    source = printable(patient_map.mpp_source, longest=_LONGEST)
    return (
        f"{num:,} {'patch' if num == 1 else 'patches'}, {called:.0%} called IDC at threshold "
        f"{panel_input.threshold:.2f}; {patient_map.mpp:g} \N{MICRO SIGN}m/px ({source}); "
        f"model {architecture}, patient in its split: {role}"
    )


def panel_grid(num: int) -> tuple[int, int]:
    """Return rows and columns of ``num`` panels on a page."""
    rows = -(-num // _MAX_COLUMNS)
    return rows, -(-num // rows)


def _fit_panel(size: tuple[float, float], num: int) -> tuple[float, float]:
    """Return width and height in mm of one of ``num`` panels, from its size in any unit."""
    rows, columns = panel_grid(num)
    width = (PAGE_MM - 2 * _MARGIN_MM - (columns - 1) * _GAP_MM) / columns
    height = (_MAX_HEIGHT_MM - 20) / rows - _TITLE_MM - _FOOT_MM
    scale = min(width / size[0], min(height, _MAX_FRAME_MM) / size[1])
    return size[0] * scale, size[1] * scale


def layout_page(panels: Sequence[Panel], *, name: str, details: Sequence[str]) -> Figure:
    """Draw panels under a heading, at most as wide as a journal's page.

    Args:
        panels: Panels from left to right, then from top to bottom.
        name: First line of the heading.
        details: Paragraphs below it.
    """
    rows, columns = panel_grid(len(panels))
    sizes = [_fit_panel(panel.size, len(panels)) for panel in panels]
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


def nice_length(span: float) -> float:
    """Return the largest of 1, 2, 5 times a power of ten that is at most a third of ``span``."""
    power = 10.0 ** np.floor(np.log10(span / 3))
    return float(max(step * power for step in (1, 2, 5) if step * power <= span / 3))


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
        _draw_scale_bar(foot, width / (panel.size[0] * panel.unit_mm), width)
        legend_left = _SCALE_SHARE * column
    if panel.color_bar is not None:
        _draw_color_bar(foot, panel.color_bar, legend_left, column)
    _draw_legend(foot, panel.legend, legend_left)


def _draw_lines(ax: Axes, ends: NDArray[np.int64], color: str, width_pt: float) -> None:
    """Draw lines with a white rim, which makes them visible on any stain."""
    for line_color, line_pt in (("white", width_pt + _RIM_PT), (color, width_pt)):
        lines = LineCollection(
            list(ends),
            colors=line_color,
            linewidths=line_pt,
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
    if bar.threshold is None or not 0 <= bar.threshold <= bar.vmax:
        return
    position = bar.threshold / bar.vmax
    x, tip = left + position * (right - left), _BAR_TOP_MM - 0.1
    foot.add_patch(Polygon([(x, tip), (x - 0.8, tip - 1.2), (x + 0.8, tip - 1.2)], color=INK, lw=0))
    foot.plot([x, x], [_BAR_TOP_MM, bottom], color="white", lw=1.4, zorder=2)
    foot.plot([x, x], [_BAR_TOP_MM, bottom], color=INK, lw=0.6, zorder=3)
    shift = 1.2 if position < 0.5 else -1.2
    small |= {"ha": "left" if position < 0.5 else "right", "va": "bottom"}
    foot.text(x + shift, tip - 0.1, f"threshold {bar.threshold:.2f}", **small)


def _draw_legend(foot: Axes, entries: Sequence[LegendEntry], left: float) -> None:
    for number, entry in enumerate(entries):
        y = 2.4 + number * _ENTRY_MM
        if entry.ends is None:
            foot.add_patch(Rectangle((left, y - 1.1), 2.2, 2.2, color=entry.color, lw=0))
        else:
            foot.plot([left, left + 4], [y, y], color=entry.color, lw=entry.width_pt)
        indent = 3.2 if entry.ends is None else 5.2
        foot.text(left + indent, y, entry.name, va="center_baseline", fontsize=_SMALL_PT, color=INK)
