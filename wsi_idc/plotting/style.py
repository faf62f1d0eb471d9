"""Style of figures: colors, font sizes and page sizes, and functions that save figures."""

import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsi_idc.core.files import atomic_write
from wsi_idc.plotting.colors import INK

# Colors of lines and marks in figures, and the grays of lines behind marks.
ACCENT, OTHER, THIRD = "#2f6db3", "#c2410c", "#2a9d6f"
GRAY, GRID = "#8a8a8a", "#e4e4e4"
DPI = 150
PAGE_MM = 180.0  # width of a journal's page
_MM_PER_INCH = 25.4
# ``parse_math`` is off, because a patient id can contain a dollar sign. With a fixed salt and
# without a date, equal numbers give equal SVG files.
_STYLE = {
    "axes.grid": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "pdf.fonttype": 42,  # TrueType, required by journals
    "svg.hashsalt": "wsi-idc",
    "text.parse_math": False,
}
# Further settings for figures that are printed without scaling.
_PAGE_STYLE = {"axes.linewidth": 0.4, "axes.titlesize": 7, "font.size": 6.5}


def house_style() -> AbstractContextManager[None]:
    """Context manager: figures drawn or saved in the ``with`` block have the project's style.

    All other settings are the defaults of matplotlib. The user's file matplotlibrc has no effect.
    """
    return style.context(_STYLE, after_reset=True)


def page_style() -> AbstractContextManager[None]:
    """Context manager: like ``house_style``, but with line widths and font sizes for print."""
    return style.context(_STYLE | _PAGE_STYLE, after_reset=True)


class Page:
    """A figure whose parts have positions in mm from the top left corner of the figure."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / _MM_PER_INCH, height / _MM_PER_INCH))

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes with the top left corner at (``left``, ``top``); all lengths are in mm."""
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, text: str, **options: Any) -> None:
        """Add text; the position of its top left corner is in mm.

        ``options`` are keyword arguments of matplotlib's ``Figure.text``.
        """
        options = {"ha": "left", "va": "top", "color": INK, **options}
        self.figure.text(left / self.width, 1 - top / self.height, text, **options)


def to_px(length_mm: float, *, dpi: float) -> float:
    """Convert a length on paper from mm to pixels."""
    return length_mm / _MM_PER_INCH * dpi


def printable(text: object, *, longest: int = 16) -> str:
    """Return ``text`` as one line of at most ``longest`` printable characters."""
    line = "".join(char if char.isprintable() else "?" for char in str(text))
    return line if len(line) <= longest else f"{line[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def say_none(ax: Axes, reason: str) -> None:
    """Write ``reason`` into the middle of axes that have no data."""
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color=INK)


def save_png(figure: Figure, path: Path, *, dpi: float = DPI) -> None:
    """Write a figure as PNG in one atomic step."""
    _save(figure, path, format="png", dpi=dpi)


def save_pdf(figure: Figure, path: Path, *, dpi: float = DPI) -> None:
    """Write a figure as PDF in one atomic step. Pictures in the PDF have ``dpi`` dots per inch."""
    _save(figure, path, format="pdf", dpi=dpi, metadata={"CreationDate": None})


def save_png_and_svg(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and SVG, each in one atomic step; ``path`` has no suffix."""
    save_png(figure, path.with_suffix(".png"))
    figure.set_layout_engine("none")  # reuse the layout of the PNG: computing a layout is slow
    _save(figure, path.with_suffix(".svg"), format="svg", dpi=DPI, metadata={"Date": None})


def _save(figure: Figure, path: Path, **options: Any) -> None:
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # If the font has no glyph for a letter, matplotlib warns and draws a box.
        warnings.filterwarnings("ignore", message="Glyph ")
        with atomic_write(path) as partial:
            figure.savefig(partial, **options)
