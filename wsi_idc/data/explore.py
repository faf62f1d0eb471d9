"""Write what there is to know about a data set: tables, figures and a summary."""

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsi_idc.data.charts import CHARTS
from wsi_idc.data.describe import SIGNIFICANT_DIGITS, describe
from wsi_idc.data.pack import Pack
from wsi_idc.data.pictures import PICTURES, samples
from wsi_idc.errors import DataError
from wsi_idc.files import replacing, write_json, write_text
from wsi_idc.progress import progress

logger = logging.getLogger(__name__)

SUMMARY_JSON = "summary.json"
FIGURES = "figures"
_DPI = 150
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


def explore(pack: Pack, out: Path, *, seed: int = 0) -> dict[str, Any]:
    """Describe ``pack`` and write tables, figures and a summary into the folder ``out``.

    Args:
        pack: The data set; its pixels are read once.
        out: Folder of ``*.csv``, ``figures/*.png`` and ``*.svg``, and ``summary.json``, which is
            written last.
        seed: Seed of the choice of sample patches.

    Returns:
        What ``summary.json`` holds: the numbers that matter most, and the names of the files.

    Raises:
        DataError: ``out`` is a file, or the pack is cut short while it is read.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; --out names a folder")
    description = describe(pack)
    tables = description.tables()
    for name, table in tables.items():
        # Whole numbers stay whole; six digits hide the last bits of a sum.
        text = table.to_csv(index=False, float_format=f"%.{SIGNIFICANT_DIGITS}g")
        write_text(out / f"{name}.csv", text)
    drawings = CHARTS | {"samples": partial(samples, seed=seed)} | PICTURES
    with progress(len(drawings), what="drawing", unit="figure") as bar, mpl.rc_context(_STYLE):
        for name, draw in drawings.items():
            _save(draw(description, pack), out / FIGURES / name)
            bar.update(1)
    summary = description.summary | {
        "seed": seed,
        "tables": [f"{name}.csv" for name in tables],
        "figures": [f"{FIGURES}/{name}.{kind}" for name in drawings for kind in ("png", "svg")],
    }
    write_json(out / SUMMARY_JSON, summary)
    return summary


def _save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and as SVG."""
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A letter of a patient id that the font has not is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph ")
        with replacing(path.with_suffix(".png")) as partial_png:
            figure.savefig(partial_png, format="png", dpi=_DPI)
        figure.set_layout_engine("none")  # it lies well now, and laying out takes most of the time
        with replacing(path.with_suffix(".svg")) as partial_svg:
            figure.savefig(partial_svg, format="svg", dpi=_DPI, metadata=_SVG_METADATA)
