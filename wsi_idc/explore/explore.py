"""Write tables, figures and a summary of a data set."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from wsi_idc.core.csv_table import csv_text
from wsi_idc.core.files import ensure_writable, write_json, write_text
from wsi_idc.core.progress import progress
from wsi_idc.data.pack import Pack
from wsi_idc.explore.charts import CHARTS
from wsi_idc.explore.patch_figures import PATCH_FIGURES, augmentation, samples
from wsi_idc.explore.tables import SIGNIFICANT_DIGITS, describe
from wsi_idc.plotting.style import house_style, save_png_and_svg

logger = logging.getLogger(__name__)

SUMMARY_JSON = "summary.json"
FIGURES = "figures"
HINTS_CSV = "hints.csv"
_WRITES = ("patients.csv", "classes.csv", "channels.csv", "sizes.csv", SUMMARY_JSON, FIGURES)


def explore(pack: Pack, out: Path, *, seed: int = 0) -> dict[str, Any]:
    """Describe ``pack`` and write tables, figures and a summary into the folder ``out``.

    Args:
        pack: Pack of the data set. The pixels of the pack are read once.
        out: Folder for the CSV files, ``figures/`` and ``summary.json``. An old ``summary.json`` is
            removed first, and the new one is written last: a folder with this file is complete.
        seed: Seed that selects the sample patches and their augmentation.

    Returns:
        Content of ``summary.json``: the most important numbers and the names of the files.

    Raises:
        DataError: The pack is truncated while it is read.
        WsiIdcError: ``out`` is not writable, or another program wrote files of these names.
    """
    ensure_writable(out, writes=_WRITES, marks=(HINTS_CSV,))
    description = describe(pack)
    tables = description.tables()
    (out / SUMMARY_JSON).unlink(missing_ok=True)
    # hints.csv is written first: this file marks the folder as a folder of explore.
    for name, table in sorted(tables.items(), key=lambda item: f"{item[0]}.csv" != HINTS_CSV):
        # Integers are written exactly. Floats have six digits: this hides rounding errors.
        text = csv_text(table, float_format=f"%.{SIGNIFICANT_DIGITS}g")
        write_text(out / f"{name}.csv", text)
    seeded = {draw.__name__: partial(draw, seed=seed) for draw in (samples, augmentation)}
    drawings = CHARTS | seeded | PATCH_FIGURES
    with progress(len(drawings), what="drawing", unit="figure") as bar, house_style():
        for name, draw in drawings.items():
            save_png_and_svg(draw(description, pack), out / FIGURES / name)
            bar.update(1)
    summary = description.summary | {
        "seed": seed,
        "tables": [f"{name}.csv" for name in tables],
        "figures": [f"{FIGURES}/{name}.{kind}" for name in drawings for kind in ("png", "svg")],
    }
    write_json(out / SUMMARY_JSON, summary)
    return summary
