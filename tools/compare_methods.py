"""Say what views, ensembles and smoothing bring on the test patients of some runs, as Markdown.

    python tools/compare_methods.py data/idc.h5 runs/a runs/b runs/c

The runs must have the same test patients. The first one as it is, one view of each patch, is what
the others are compared with, paired by patient. Costs are processor time, so that other work on the
machine does not count.
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

_SHOWN = ("auc", "average_precision", "f1", "brier", "ece")


@dataclass(frozen=True)
class Way:
    """A method, its evaluation, and the processor seconds that it took."""

    name: str
    evaluation: Evaluation
    seconds: float

    def predictions(self) -> Predictions:
        """Return what ``compare`` takes."""
        final, table = self.evaluation.final, self.evaluation.predictions
        table = table.drop(columns="probability") if final.column != "probability" else table
        table = table.rename(columns={final.column: "probability"})
        return Predictions(Path(self.name), final.threshold, table, {})


def main(data: Path, runs: list[Path]) -> None:
    """Evaluate each way and print the tables."""
    pack = Pack(data)
    loaded = tuple(load_checkpoint(run / "best.pt") for run in runs)
    first = loaded[:1]
    ways = [
        measure(pack, "one checkpoint", Predictor(first)),
        *(
            measure(pack, f"another one ({run.name})", Predictor((one,)))
            for run, one in zip(runs[1:], loaded[1:], strict=True)
        ),
        measure(pack, "8 views", Predictor(first, tta=True)),
        measure(pack, "smoothed", Predictor(first, smooth=True)),
        measure(pack, "8 views, smoothed", Predictor(first, tta=True, smooth=True)),
        measure(pack, f"ensemble of {len(runs)}", Predictor(loaded)),
        measure(pack, "ensemble, smoothed", Predictor(loaded, smooth=True)),
        measure(pack, "ensemble, 8 views, smoothed", Predictor(loaded, tta=True, smooth=True)),
    ]
    tables = (table_of_metrics(ways), table_of_differences(ways), table_of_patients(ways))
    sys.stdout.write("\n\n".join(tables) + "\n")


def measure(pack: Pack, name: str, method: Predictor) -> Way:
    """Evaluate a method on the test patients of all the runs."""
    compute = select_device()
    patients = choose_patients(method, pack, "test")
    started = time.process_time()
    found = evaluate(method, pack, patients, split="test", device_config=compute, batch_size=256)
    return Way(name, found, time.process_time() - started)


def table_of_metrics(ways: list[Way]) -> str:
    """Return each way's metrics with their intervals, and its cost."""
    rows = [
        f"| | {' | '.join(_SHOWN)} | Dice of a patient, mean | cost |",
        "|---|" + "---|" * (len(_SHOWN) + 2),
    ]
    for way in ways:
        final, dice = way.evaluation.final, way.evaluation.patient_summary["dice"]
        cells = [
            f"{final.metrics[name]:.3f} [{low:.3f}, {high:.3f}]"
            for name in _SHOWN
            for low, high in [final.intervals[name]]
        ]
        cells.append(f"{dice['mean']:.3f} [{dice['low']:.3f}, {dice['high']:.3f}]")
        cells.append(f"{way.seconds / ways[0].seconds:.1f} x")
        rows.append(f"| {way.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def table_of_differences(ways: list[Way]) -> str:
    """Return by how much each way is better than the first, paired by patient."""
    rows = [
        "| against one checkpoint | " + " | ".join(_SHOWN) + " |",
        "|---|" + "---|" * len(_SHOWN),
    ]
    for way in ways[1:]:
        found = compare(ways[0].predictions(), way.predictions()).metrics.set_index("metric")
        cells = []
        for name in _SHOWN:
            one = found.loc[name]
            sure = {"b": "**", "a": "*"}.get(str(one["better"]), "")
            cells.append(
                f"{sure}{one['difference']:+.3f}{sure} [{one['low']:+.3f}, {one['high']:+.3f}]"
            )
        rows.append(f"| {way.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def table_of_patients(ways: list[Way]) -> str:
    """Return each patient's AUC and Dice by each way."""
    patients = ways[0].evaluation.patients["patient"].tolist()
    rows = ["| AUC / Dice | " + " | ".join(patients) + " |", "|---|" + "---|" * len(patients)]
    for way in ways:
        table = way.evaluation.patients.set_index("patient")
        cells = [f"{table.loc[one, 'auc']:.3f} / {table.loc[one, 'dice']:.3f}" for one in patients]
        rows.append(f"| {way.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    main(**vars(parser.parse_args()))
