"""Draw a map: tissue, probability, CAM mosaic and labels side by side."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from wsi_idc.files import replacing
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.maps.store import read_image, read_map

DEFAULT_DPI = 150
NOTICE = "Research use only, not for diagnosis."
_PANEL_INCHES = 4.6
# A single glowing pixel should not darken the rest; what lies above is drawn at full strength.
_CAM_TOP_PERCENTILE = 99.5
_NO_PATCH = "#f4f4f4"
_LABEL_COLOURS = ("#bdbdbd", "#8fb7d9", "#c2410c")  # unknown, non-IDC, IDC


def render_map(path: Path, out: Path, *, dpi: int = DEFAULT_DPI) -> None:
    """Draw the map file ``path`` as the PNG ``out``.

    Raises:
        MapError: The map cannot be read.
    """
    content, image = read_map(path), read_image(path)
    figure = _figure(content, image)
    FigureCanvasAgg(figure)
    with replacing(out) as partial:
        figure.savefig(partial, format="png", dpi=dpi)


def nice_length(span: float) -> float:
    """Return the largest of 1, 2, 5 times a power of ten that is at most a third of ``span``."""
    power = 10.0 ** np.floor(np.log10(span / 3))
    return float(max(step * power for step in (1, 2, 5) if step * power <= span / 3))


def _figure(content: PatientMap, image: NDArray[np.uint8] | None) -> Figure:
    first_row, first_col = content.row_col.min(axis=0)
    rows, cols = content.shape
    # Everything is drawn in mm of the tissue, so that the four panels lie over each other.
    cell_mm = content.patch_px * content.mpp / 1000
    extent = (0, cols * cell_mm, rows * cell_mm, 0)
    height = (rows - first_row) / (cols - first_col) * _PANEL_INCHES
    height = float(np.clip(height, 1.5, 3 * _PANEL_INCHES))
    size = (4 * (_PANEL_INCHES + 0.9), height + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, 4, sharex=True, sharey=True)
    _draw_tissue(axes[0], content, image, extent)
    _draw_probability(axes[1], content, extent)
    _draw_cam(axes[2], content, extent)
    _draw_labels(axes[3], content, extent)
    for ax in axes:
        ax.set_facecolor(_NO_PATCH)
        ax.set_aspect("equal")
        ax.set_xticks([])
        ax.set_yticks([])
    axes[0].set_xlim(first_col * cell_mm, extent[1])
    axes[0].set_ylim(extent[2], first_row * cell_mm)
    _draw_scale_bar(axes[0])
    figure.suptitle(_title(content), x=0.01, ha="left", fontsize=11, parse_math=False)
    return figure


def _title(content: PatientMap) -> str:
    called = content.idc_fraction()
    role = content.model.get("role_of_patient")
    return (
        f"Patient {content.patient}: {len(content.probability)} patches, {called:.0%} called IDC "
        f"(threshold {content.threshold:.2f}), {content.mpp:g} um/px ({content.mpp_source}); "
        f"model {content.model.get('architecture')}, patient in its split: {role}. {NOTICE}"
    )


def _draw_tissue(
    ax: Axes,
    content: PatientMap,
    image: NDArray[np.uint8] | None,
    extent: tuple[float, float, float, float],
) -> None:
    ax.set_title("Tissue")
    if image is None:
        ax.text(0.5, 0.5, "made with --no-image", transform=ax.transAxes, ha="center")
    else:
        ax.imshow(image, extent=extent, interpolation="antialiased")


def _add_colour_bar(ax: Axes, drawn: ScalarMappable, **options: Any) -> Colorbar:
    """Add a colour bar as high as the panel."""
    assert isinstance(ax.figure, Figure)
    return ax.figure.colorbar(drawn, cax=ax.inset_axes((1.03, 0, 0.05, 1)), **options)


def _draw_probability(
    ax: Axes, content: PatientMap, extent: tuple[float, float, float, float]
) -> None:
    ax.set_title("Probability of IDC")
    drawn = ax.imshow(
        content.probability_grid(),
        extent=extent,
        vmin=0,
        vmax=1,
        cmap="magma",
        interpolation="nearest",
    )
    bar = _add_colour_bar(ax, drawn)
    bar.ax.axhline(content.threshold, color="white", linewidth=1.5)


def _draw_cam(ax: Axes, content: PatientMap, extent: tuple[float, float, float, float]) -> None:
    ax.set_title("Grad-CAM of IDC (raw, one scale for the patient)")
    if content.cam is None:
        ax.text(0.5, 0.5, "made without a CAM", transform=ax.transAxes, ha="center")
        return
    top = float(np.percentile(content.cam, _CAM_TOP_PERCENTILE)) or 1.0
    drawn = ax.imshow(
        content.cam_mosaic(),
        extent=extent,
        norm=Normalize(0, top),
        cmap="viridis",
        interpolation="nearest",
    )
    _add_colour_bar(ax, drawn, extend="max")


def _draw_labels(ax: Axes, content: PatientMap, extent: tuple[float, float, float, float]) -> None:
    ax.set_title("Labels")
    grid = content.label_grid().astype(float)
    grid[np.isnan(content.probability_grid())] = np.nan
    colours, norm = ListedColormap(_LABEL_COLOURS), BoundaryNorm([-1.5, -0.5, 0.5, 1.5], 3)
    drawn = ax.imshow(grid, extent=extent, cmap=colours, norm=norm, interpolation="nearest")
    bar = _add_colour_bar(ax, drawn, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["unknown", *content.class_names], parse_math=False)


def _draw_scale_bar(ax: Axes) -> None:
    """Draw a bar of a round length at the lower left of a panel whose unit is mm."""
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    length = nice_length(right - left)
    height = abs(bottom - top)
    x, y = left + 0.03 * (right - left), bottom - 0.04 * height
    ax.add_patch(Rectangle((x, y), length, 0.012 * height, color="black"))
    ax.text(x + length / 2, y - 0.01 * height, f"{length:g} mm", ha="center", va="bottom")
