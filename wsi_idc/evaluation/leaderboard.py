"""Several evaluations in one table, best first, with published results beside them."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pandas as pd

from wsi_idc.core.files import ensure_writable, write_json, write_text
from wsi_idc.core.metric_table import METRICS, SMALLER_IS_BETTER
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.metrics.classification import records

RANKABLE = tuple(name for name in METRICS if name != "prevalence")
MEASURED, PUBLISHED = "measured", "published"


def leaderboard(
    evaluations: Sequence[tuple[str, Evaluation]], *, rank_by: str = "auc"
) -> pd.DataFrame:
    """Return one row an evaluation, best first, then the published results for context.

    Columns: rank, name, source ("measured" or "published"), test, patients, patches, each metric,
    of the one that ranks also low and high of its interval, note. A published result has no
    rank: it is of other patients.

    Args:
        evaluations: Names and what they are of.
        rank_by: A metric.
    """
    rows = []
    for name, one in evaluations:
        low, high = one.judged.intervals[rank_by]
        rows.append(
            {
                "name": name,
                "source": MEASURED,
                "test": one.split,
                "patients": one.num_patients,
                "patches": one.num_patches,
                **one.judged.metrics,
                f"{rank_by}_low": low,
                f"{rank_by}_high": high,
                "note": "; ".join(one.notes),
            }
        )
    table = pd.DataFrame(rows).sort_values(
        rank_by, ascending=rank_by in SMALLER_IS_BETTER, kind="stable", ignore_index=True
    )
    table.insert(0, "rank", [float(rank) for rank in range(1, len(table) + 1)])
    published = published_results().rename(columns={"work": "name"}).assign(source=PUBLISHED)
    known = published.sort_values("auc", ascending=False, kind="stable")
    return pd.concat([table, known.reindex(columns=table.columns)], ignore_index=True)


def published_results() -> pd.DataFrame:
    """Return honest, patient-wise results from the literature: work, test, metrics, note."""
    file = resources.files("wsi_idc.evaluation") / "published.csv"
    with file.open(encoding="utf-8") as text:
        return pd.read_csv(text)


def same_patients(evaluations: Sequence[tuple[str, Evaluation]]) -> bool:
    """Return whether all evaluations are of the same patches, so that they may be compared."""
    keys = [one.predictions[["patient", "x", "y", "label"]] for _, one in evaluations]
    return all(key.equals(keys[0]) for key in keys)


def check_leaderboard_folder(out: Path) -> None:
    """Raise where a leaderboard cannot be written into ``out``, or not without a loss.

    Raises:
        WsiIdcError: With the reason.
    """
    writes = ("leaderboard.csv", "leaderboard.json", "leaderboard.html", "figures")
    ensure_writable(out, writes=writes, marks=("leaderboard.csv",))


def write_leaderboard(table: pd.DataFrame, out: Path) -> None:
    """Write leaderboard.csv and leaderboard.json into the folder ``out``."""
    write_text(out / "leaderboard.csv", table.to_csv(index=False))
    write_json(out / "leaderboard.json", records(table))
