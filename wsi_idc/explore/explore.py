"""Write tables, figures, a page and a summary of a data set."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from wsi_idc.core.csv_table import csv_text
from wsi_idc.core.files import ensure_writable, write_json, write_text
from wsi_idc.core.text import count, count_patches
from wsi_idc.data.pack import Pack
from wsi_idc.explore.charts import CHARTS
from wsi_idc.explore.patch_figures import PATCH_FIGURES, augmentation, samples
from wsi_idc.explore.tables import SIGNIFICANT_DIGITS, describe, label_names
from wsi_idc.plotting.html import FIGURES, write_figures, write_page

logger = logging.getLogger(__name__)

SUMMARY_JSON = "summary.json"
INDEX_HTML = "index.html"
HINTS_CSV = "hints.csv"
_TABLES = ("patients.csv", "classes.csv", "channels.csv", "sizes.csv")
_WRITES = (*_TABLES, SUMMARY_JSON, INDEX_HTML, FIGURES)
_MAX_ROWS = 100
# Tables on the page, and their columns.
_SHOWN = {
    "classes": ("Classes", ("class", "patches", "patients")),
    "hints": ("Hints at errors", ("kind", "patient", "x", "y", "label", "value", "path")),
    "duplicates": ("Near duplicates", ("group", "patient", "x", "y", "label", "path")),
    "patients": (
        "Patients",
        ("patient", "patches", "non_idc", "idc", "unknown", "idc_fraction", "stain_outlier"),
    ),
}


def explore(pack: Pack, out: Path, *, seed: int = 0) -> dict[str, Any]:
    """Describe ``pack``; write tables, figures, a page and a summary into the folder ``out``.

    Args:
        pack: Pack of the data set. The pixels of the pack are read once.
        out: Folder for the CSV files, ``figures/``, ``index.html`` and ``summary.json``. An old
            ``summary.json`` is removed first, and the new one is written last: a folder with this
            file is complete.
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
    uris = write_figures(
        {name: partial(draw, description, pack) for name, draw in drawings.items()}, out
    )
    summary = description.summary | {
        "seed": seed,
        "tables": [f"{name}.csv" for name in tables],
        "figures": [f"{FIGURES}/{name}.{kind}" for name in drawings for kind in ("png", "svg")],
    }
    _write_page(out / INDEX_HTML, pack, summary, tables, uris)
    write_json(out / SUMMARY_JSON, summary)
    return summary


def _write_page(
    path: Path,
    pack: Pack,
    summary: dict[str, Any],
    tables: dict[str, pd.DataFrame],
    uris: dict[str, str],
) -> None:
    """Write the page with all figures and the first rows of the tables."""
    shown = []
    for name, (title, columns) in _SHOWN.items():
        part = tables[name][list(columns)].head(_MAX_ROWS)
        if "label" in part:
            part = part.assign(label=part["label"].map(label_names(pack)))
        rows = json.loads(part.to_json(orient="records"))
        shown.append((title, f"{name}.csv", rows, len(tables[name])))
    hints = summary["hints"]
    counts, stains = hints["patches"], hints["stain_outliers"]
    totals = [
        ("data", f"{pack.path.name}, fingerprint {summary['source_fingerprint']}"),
        ("patients with one class", summary["patients_with_one_class"]),
        ("patches with 8 neighbors", f"{summary['complete_3x3']:,}"),
        (
            "small patches",
            f"{summary['small_patches']:,}, {summary['small_inside_slide']:,} of them not at the "
            "right or bottom edge of the slide",
        ),
        *((f"{kind} hints", f"{n:,}: {hints['rules'][kind]}") for kind, n in counts.items()),
        ("stain outliers", ", ".join(stains) or "none"),
        ("near duplicates", count(summary["near_duplicates"]["patches"], "patch", "patches")),
    ]
    facts = f"{count_patches(summary['patches'], summary['patients'])}, "
    facts += f"{summary['patch_px']} px at {summary['mpp']:g} µm/px ({summary['mpp_source']})"
    write_page(
        path, "explore/templates/index.html", facts=facts, totals=totals, uris=uris, tables=shown
    )
