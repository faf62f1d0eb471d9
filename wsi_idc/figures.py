"""The look of every figure, and its way to disk."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsi_idc.files import replacing

INK = "#333333"
DPI = 150
# Patient ids are shown as they are: a dollar sign starts no formula. Salt and date as given, the
# same numbers give the same SVG.
_STYLE = {
    "axes.grid": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "svg.hashsalt": "wsi-idc",
    "text.parse_math": False,
}
_SVG_METADATA = {"Date": None}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save in the project's style during the block."""
    with mpl.rc_context(_STYLE):
        yield


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG in one atomic step."""
    _save(figure, path, format="png")


def save_png_and_svg(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and as SVG, each in one atomic step.

    Args:
        figure: The figure.
        path: Of both, without the suffix.
    """
    save_png(figure, path.with_suffix(".png"))
    figure.set_layout_engine("none")  # it lies well now, and laying out takes most of the time
    _save(figure, path.with_suffix(".svg"), format="svg", metadata=_SVG_METADATA)


def _save(figure: Figure, path: Path, **how: Any) -> None:
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A letter of a patient id that the font has not is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph ")
        with replacing(path) as partial:
            figure.savefig(partial, dpi=DPI, **how)
