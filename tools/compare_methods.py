"""Compare test-time augmentation, ensembles and smoothing on test patients; print Markdown.

    python tools/compare_methods.py data/idc.h5 runs/a runs/b runs/c

The runs must have the same test patients. The baseline is the checkpoint of the first run, with one
view of each patch. Differences from the baseline are paired by patient. The cost is CPU time,
because other programs on the machine do not change it.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.compare import Predictions, compare
from wsi_idc.evaluation.evaluate import choose_patients, evaluate
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.inference.predictor import Predictor
from wsi_idc.models.checkpoint import load_checkpoint
from wsi_idc.runtime.device import select_device

_METRICS = ("auc", "average_precision", "f1", "brier", "ece")


@dataclass(frozen=True)
class MethodResult:
    """Name of a method, its evaluation, and the CPU time in seconds."""

    name: str
    evaluation: Evaluation
    seconds: float

    def predictions(self) -> Predictions:
        """Return the predictions as an argument of ``compare``."""
        final, table = self.evaluation.final, self.evaluation.predictions
        table = table.drop(columns="probability") if final.column != "probability" else table
        table = table.rename(columns={final.column: "probability"})
        return Predictions(Path(self.name), final.threshold, table, {})


def main(data: Path, runs: list[Path]) -> None:
    """Evaluate each method and print the tables."""
    pack = Pack(data)
    checkpoints = tuple(load_checkpoint(run / "best.pt") for run in runs)
    first = checkpoints[:1]
    results = [
        measure(pack, "one checkpoint", Predictor(first)),
        *(
            measure(pack, f"other checkpoint ({run.name})", Predictor((checkpoint,)))
            for run, checkpoint in zip(runs[1:], checkpoints[1:], strict=True)
        ),
        measure(pack, "8 views", Predictor(first, tta=True)),
        measure(pack, "smoothed", Predictor(first, smooth=True)),
        measure(pack, "8 views, smoothed", Predictor(first, tta=True, smooth=True)),
        measure(pack, f"ensemble of {len(runs)}", Predictor(checkpoints)),
        measure(pack, "ensemble, smoothed", Predictor(checkpoints, smooth=True)),
        measure(pack, "ensemble, 8 views, smoothed", Predictor(checkpoints, tta=True, smooth=True)),
    ]
    tables = (table_of_metrics(results), table_of_differences(results), table_of_patients(results))
    sys.stdout.write("\n\n".join(tables) + "\n")


def measure(pack: Pack, name: str, predictor: Predictor) -> MethodResult:
    """Evaluate a method on the test patients of all runs."""
    device_config = select_device()
    patients = choose_patients(predictor, pack, "test")
    start = time.process_time()
    evaluation = evaluate(
        predictor, pack, patients, split="test", device_config=device_config, batch_size=256
    )
    return MethodResult(name, evaluation, time.process_time() - start)


def table_of_metrics(results: list[MethodResult]) -> str:
    """Return a Markdown table of metrics with intervals, and cost, for each method."""
    rows = [
        f"| | {' | '.join(_METRICS)} | Dice of a patient, mean | cost |",
        "|---|" + "---|" * (len(_METRICS) + 2),
    ]
    for result in results:
        final, dice = result.evaluation.final, result.evaluation.patient_summary["dice"]
        cells = [
            f"{final.metrics[name]:.3f} [{low:.3f}, {high:.3f}]"
            for name in _METRICS
            for low, high in [final.intervals[name]]
        ]
        cells.append(f"{dice['mean']:.3f} [{dice['low']:.3f}, {dice['high']:.3f}]")
        cells.append(f"{result.seconds / results[0].seconds:.1f} x")
        rows.append(f"| {result.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def table_of_differences(results: list[MethodResult]) -> str:
    """Return a Markdown table of the differences of each method from the first method."""
    rows = [
        "| against one checkpoint | " + " | ".join(_METRICS) + " |",
        "|---|" + "---|" * len(_METRICS),
    ]
    for result in results[1:]:
        comparison = compare(results[0].predictions(), result.predictions())
        differences = comparison.metrics.set_index("metric")
        cells = []
        for name in _METRICS:
            row = differences.loc[name]
            mark = {"b": "**", "a": "*"}.get(str(row["better"]), "")
            cells.append(
                f"{mark}{row['difference']:+.3f}{mark} [{row['low']:+.3f}, {row['high']:+.3f}]"
            )
        rows.append(f"| {result.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def table_of_patients(results: list[MethodResult]) -> str:
    """Return a Markdown table of AUC and Dice, with a row per method and a column per patient."""
    patients = results[0].evaluation.patients["patient"].tolist()
    rows = ["| AUC / Dice | " + " | ".join(patients) + " |", "|---|" + "---|" * len(patients)]
    for result in results:
        table = result.evaluation.patients.set_index("patient")
        cells = [f"{table.loc[p, 'auc']:.3f} / {table.loc[p, 'dice']:.3f}" for p in patients]
        rows.append(f"| {result.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    main(**vars(parser.parse_args()))
