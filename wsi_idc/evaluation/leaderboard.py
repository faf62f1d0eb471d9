"""Table of several evaluations, best first, followed by published results."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pandas as pd

from wsi_idc.core.constants import METRICS, SMALLER_IS_BETTER
from wsi_idc.core.files import write_json, write_text
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.metrics.classification import records

RANKABLE = tuple(name for name in METRICS if name != "prevalence")
MEASURED, PUBLISHED = "measured", "published"
_CSV, _JSON = "leaderboard.csv", "leaderboard.json"
# Arguments of ``core.files.ensure_writable`` for the folder of a leaderboard.
LEADERBOARD_FILES = {"writes": (_CSV, _JSON, "leaderboard.html", "figures"), "marks": (_CSV,)}


def leaderboard(
    evaluations: Sequence[tuple[str, Evaluation]], *, rank_by: str = "auc"
) -> pd.DataFrame:
    """Build a table with one row per evaluation, best first, then the published results.

    Args:
        evaluations: Name and evaluation of each row.
        rank_by: Name of the metric that sorts the rows.

    Returns:
        Columns rank, name, source ("measured" or "published"), test, patients, patches, each
        metric, low and high of the interval of ``rank_by``, note. A published result has no rank:
        its patients are others.
    """
    rows = []
    for name, evaluation in evaluations:
        low, high = evaluation.final.intervals[rank_by]
        rows.append(
            {
                "name": name,
                "source": MEASURED,
                "test": evaluation.split,
                "patients": evaluation.num_patients,
                "patches": evaluation.num_patches,
                **evaluation.final.metrics,
                f"{rank_by}_low": low,
                f"{rank_by}_high": high,
                "note": "; ".join(evaluation.notes),
            }
        )
    table = pd.DataFrame(rows).sort_values(
        rank_by, ascending=rank_by in SMALLER_IS_BETTER, kind="stable", ignore_index=True
    )
    table.insert(0, "rank", [float(rank) for rank in range(1, len(table) + 1)])
    published = published_results().rename(columns={"work": "name"}).assign(source=PUBLISHED)
    published = published.sort_values("auc", ascending=False, kind="stable")
    return pd.concat([table, published.reindex(columns=table.columns)], ignore_index=True)


def published_results() -> pd.DataFrame:
    """Read the patient-wise results of the literature: work, test, metrics, note."""
    file = resources.files("wsi_idc.evaluation") / "published.csv"
    with file.open(encoding="utf-8") as text:
        return pd.read_csv(text)


def same_patients(evaluations: Sequence[tuple[str, Evaluation]]) -> bool:
    """Return True if all evaluations are of the same patches, so that ranks are meaningful."""
    keys = [evaluation.predictions[["patient", "x", "y", "label"]] for _, evaluation in evaluations]
    return all(key.equals(keys[0]) for key in keys)


def write_leaderboard(table: pd.DataFrame, out: Path) -> None:
    """Write leaderboard.csv and leaderboard.json into the folder ``out``."""
    write_text(out / _CSV, table.to_csv(index=False))
    write_json(out / _JSON, records(table))
