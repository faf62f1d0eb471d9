"""Write the bundled model, its model card and the picture in the README.

    wsi-idc job jobs/bundled.toml --data data/idc.h5     # train the models
    python tools/bundle.py data/idc.h5 [--runs runs]

The script evaluates the model on the val and test patients of the published lists, and the model
of each fold on the patients of that fold. It writes wsi_idc/models/bundled/ and docs/images/.
"""

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from wsi_idc.core.constants import NUM_RESAMPLES
from wsi_idc.core.files import write_json, write_text
from wsi_idc.core.progress import set_up_logging
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split, split_table
from wsi_idc.evaluation.evaluate import choose_patients, compute_metrics, evaluate
from wsi_idc.evaluation.gallery import false_negatives, false_positives
from wsi_idc.evaluation.results import Evaluation, MetricSet
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.metrics.bootstrap import resample_patients
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint
from wsi_idc.models.checkpoint_files import bundled_checkpoint
from wsi_idc.render.render import render_map
from wsi_idc.runtime.device import DeviceConfig, select_device

ROOT = Path(__file__).resolve().parents[1]
NUM_FOLDS = 4
# Common threshold for the predictions of all folds: each fold has another threshold.
POOLED_THRESHOLD = 0.5
FOLD_METRICS = ("auc", "average_precision", "f1", "sensitivity", "specificity", "ece")
PICTURED = "8864"  # test patient whose slide has no missing patches


def main(data: Path, runs: Path) -> None:
    """Evaluate the model; write the model, its card and the pictures."""
    set_up_logging(0)
    pack, device_config = Pack(data), select_device()
    target = bundled_checkpoint()
    shutil.copy(runs / "bundled-canonical-unlisted/best.pt", target)
    checkpoint = load_checkpoint(target)
    predictor = Predictor((checkpoint,))
    by_role = {role: evaluated(predictor, pack, role, device_config) for role in ("val", "test")}
    folds = [
        evaluated(Predictor((load_checkpoint(run / "best.pt"),)), pack, "test", device_config)
        for run in (runs / f"bundled-kfold-{NUM_FOLDS}-{fold}" for fold in range(NUM_FOLDS))
    ]
    predictions = pd.concat([fold.predictions for fold in folds], ignore_index=True)
    together = pooled(predictions)
    metrics = {role: evaluation.as_dict() for role, evaluation in by_role.items()}
    cross_validation = {"folds": [fold.as_dict() for fold in folds], "together": together.as_dict()}
    record = {**metrics, "cross-validation": cross_validation}
    write_json(target.with_suffix(".metrics.json"), record)
    write_text(target.with_suffix(".md"), card(checkpoint, pack, by_role, folds, together))
    images = ROOT / "docs/images"
    false_positives(by_role["test"], pack).savefig(images / "bundled_false_positives.png", dpi=110)
    false_negatives(by_role["test"], pack).savefig(images / "bundled_false_negatives.png", dpi=110)
    maps = Path("maps/bundled")
    MapBuilder(predictor, device_config, maps).build(PackSource(pack, [PICTURED]))
    render_map(maps / f"{PICTURED}.h5", images / "map.png", dpi=200)


def evaluated(
    predictor: Predictor, pack: Pack, role: str, device_config: DeviceConfig
) -> Evaluation:
    """Evaluate a predictor on the patients that have a role in its split."""
    patients = choose_patients(predictor, pack, role)
    return evaluate(
        predictor, pack, patients, split=role, device_config=device_config, batch_size=256
    )


def pooled(predictions: pd.DataFrame) -> MetricSet:
    """Compute the metrics over all folds; each patient is a test patient of one fold."""
    ids, code = np.unique(predictions["patient"].to_numpy(), return_inverse=True)
    weights = resample_patients(len(ids), seed=0, num_resamples=NUM_RESAMPLES)
    return compute_metrics(predictions, "probability", POOLED_THRESHOLD, code, weights)


def card(
    checkpoint: Checkpoint,
    pack: Pack,
    by_role: Mapping[str, Evaluation],
    folds: Sequence[Evaluation],
    together: MetricSet,
) -> str:
    """Return the model card as Markdown."""
    split = split_table(Split(checkpoint.split_spec, checkpoint.split), pack)
    worst = by_role["test"].patients.query("patches >= 30").nsmallest(5, "auc")
    size = sum(map(Tensor.numel, checkpoint.build().parameters()))
    return (
        (ROOT / "tools/card.md")
        .read_text(encoding="utf-8")
        .format(
            model=checkpoint.architecture,
            size=size,
            megabytes=bundled_checkpoint().stat().st_size / 1e6,
            input_px=checkpoint.input.input_px or checkpoint.input.patch_px,
            patches=len(pack),
            patients=len(pack.patients),
            epoch=checkpoint.metrics["epoch"],
            config=json.dumps(checkpoint.config),
            threshold=checkpoint.threshold,
            temperature=checkpoint.temperature,
            smoothing=checkpoint.smoothing,
            split="\n".join(
                f"| {role} | {row.patients:.0f} | {row.patches:,.0f} | {row.idc_fraction:.1%} |"
                for role, row in split.iterrows()
            ),
            rows=metric_rows(
                dict.fromkeys(by_role["test"].final.metrics),
                [by_role["val"].final, by_role["test"].final, together],
            ),
            folds=fold_rows(folds),
            spread=spread(folds),
            weak="\n".join(
                f"| {row.patient} | {row.patches} | {row.area_true:.1%} | {row.auc:.3f} | "
                f"{row.sensitivity:.3f} | {row.specificity:.3f} |"
                for row in worst.itertuples()
            ),
        )
    )


def metric_rows(names: Iterable[str], columns: Sequence[MetricSet]) -> str:
    """Return a row of a Markdown table for each metric."""
    return "\n".join(
        f"| {name} | " + " | ".join(with_interval(column, name) for column in columns) + " |"
        for name in names
    )


def fold_rows(folds: Sequence[Evaluation]) -> str:
    """Return a row of a Markdown table for each fold, with the threshold of the fold."""
    return "\n".join(
        f"| {number} | {fold.num_patients} | {fold.num_patches} | "
        + " | ".join(with_interval(fold.final, name) for name in FOLD_METRICS)
        + " |"
        for number, fold in enumerate(folds)
    )


def spread(folds: Sequence[Evaluation]) -> str:
    """Return a row of a Markdown table with the mean and standard deviation over the folds."""
    values = {name: [fold.final.metrics[name] for fold in folds] for name in FOLD_METRICS}
    cells = [f"{np.mean(each):.3f} +- {np.std(each, ddof=1):.3f}" for each in values.values()]
    return "| mean +- SD | | | " + " | ".join(cells) + " |"


def with_interval(final: MetricSet, name: str) -> str:
    """Return a metric as text, with its interval."""
    low, high = final.intervals[name]
    return f"{final.metrics[name]:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    main(**vars(parser.parse_args()))
