"""Compare recipes of the bundled model by cross-validation; print Markdown.

    python tools/cross_validation.py data/idc.h5 data/natural.h5 runs/baseline runs/bundled
    python tools/cross_validation.py data/idc.h5 data/natural.h5 runs/mine runs/other --folds 0

A recipe is the common start of the names of its four run folders. Their names contain fold0 to
fold3, and their splits are those of jobs/bundled.
Each patient is predicted by the model that was not trained on this patient: one view, without
neighbors. The metrics are those of the patches in the second pack, a random sample of each patient.
Differences from the first recipe are paired by patient. The smoothing is compared on the patients
whose patches are complete: it is fitted to all but one of them, and applied to this one. With only
some of the folds, the smoothing is left out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from held_out import (
    NUM_FOLDS,
    compare_smoothing,
    fold_runs,
    held_out_predictions,
    metrics_of,
    natural_rows,
    smoothing_lines,
    temperature_of,
    threshold_of,
    with_interval,
    with_probability,
)

from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.compare import Predictions, compare

METRICS = ("auc", "average_precision", "ece", "sensitivity", "specificity")
PAIRED = ("auc", "average_precision", "brier")


def main(data: Path, natural: Path, recipes: Sequence[Path], folds: Sequence[int]) -> None:
    """Print the tables."""
    pack, sample = Pack(data), Pack(natural)
    names = [recipe.name for recipe in recipes]
    tables, drawn, thresholds = [], [], []
    for recipe in recipes:
        table = held_out_predictions(pack, fold_runs(recipe, folds))
        table = with_probability(table, temperature_of(natural_rows(table, sample)))
        tables.append(table)
        drawn.append(natural_rows(table, sample))
        thresholds.append(threshold_of(drawn[-1]))
    lines = recipe_lines(names, drawn, thresholds)
    patch_um = pack.info.patch_px * pack.info.mpp
    for name, table, threshold in zip(names, tables, thresholds, strict=True):
        if len(folds) < NUM_FOLDS:
            break
        comparison = compare_smoothing(table, threshold, patch_um)
        lines += ["", f"Smoothing of {name}: AUC / average precision / Dice", ""]
        lines += smoothing_lines(comparison)
    sys.stdout.write("\n".join(lines) + "\n")


def recipe_lines(
    names: Sequence[str], tables: Sequence[pd.DataFrame], thresholds: Sequence[float]
) -> list[str]:
    """Return a Markdown table: metrics of each recipe, and differences from the first recipe."""
    columns = [*METRICS, *(f"difference of {name}" for name in PAIRED)]
    lines = [f"| recipe | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    first = Predictions(Path(names[0]), thresholds[0], tables[0])
    for name, table, threshold in zip(names, tables, thresholds, strict=True):
        final = metrics_of(table, threshold)
        differences = ["" for _ in PAIRED]
        if table is not first.table:
            paired = compare(first, Predictions(Path(name), threshold, table)).metrics
            differences = [
                f"{row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"
                for row in paired.set_index("metric").loc[list(PAIRED)].itertuples()
            ]
        cells = [with_interval(final, metric) for metric in METRICS]
        lines.append(f"| {name} | {' | '.join([*cells, *differences])} |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("natural", type=Path)
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--folds", type=int, nargs="+", default=range(NUM_FOLDS))
    main(**vars(parser.parse_args()))
