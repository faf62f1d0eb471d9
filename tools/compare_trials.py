"""Print Markdown tables of the trials of a search and of the means over each setting.

    python tools/compare_trials.py runs/imbalance

Sensitivity, specificity and F1 at 0.5 are from the best epoch, before calibration. After
calibration, the options for imbalanced classes would have no visible effect. The first table has a
row for each trial. Each other table has the means for each value of one setting.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

NAMES = {
    "val_average_precision": "AP",
    "val_auc": "AUC",
    "val_sensitivity": "sensitivity at 0.5",
    "val_specificity": "specificity at 0.5",
    "val_f1": "F1 at 0.5",
    "f1": "largest F1",
}


def main(folder: Path) -> None:
    """Print the tables of a finished search."""
    trials = pd.read_csv(folder / "trials.csv")
    asked = json.loads((folder / "search.json").read_text())["asked"]
    axes = [key.removeprefix("axes.") for key in asked if key.startswith("axes.")]
    trials = trials[trials["state"] == "complete"].sort_values(axes, ignore_index=True)
    epochs = pd.DataFrame(
        [_best_epoch(Path(row.run), row.best_epoch) for row in trials.itertuples()]
    )
    table = pd.concat([trials[[*axes, "f1"]], epochs], axis=1)
    parts = [_markdown(table, axes)]
    for axis in axes:
        parts.append(_markdown(table.groupby(axis)[list(NAMES)].mean().reset_index(), [axis]))
    sys.stdout.write("\n".join(parts))


def _best_epoch(run: Path, epoch: int) -> dict[str, float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[epoch - 1])
    return {name: record[name] for name in NAMES if name in record}


def _markdown(table: pd.DataFrame, axes: list[str]) -> str:
    rows = [[*axes, *NAMES.values()], ["---"] * (len(axes) + len(NAMES))]
    for row in table.to_dict("records"):
        rows.append([str(row[axis]) for axis in axes] + [f"{row[name]:.3f}" for name in NAMES])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("search", type=Path)
    main(parser.parse_args().search)
