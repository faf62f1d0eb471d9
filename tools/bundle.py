"""Write the bundled model, its model card and the picture in the README.

    wsi-idc job jobs/bundled.toml --data data/idc.h5     # train the models
    python tools/bundle.py data/idc.h5 data/natural.h5 [--runs runs]

The second pack has a random sample of the patches of each patient. The bundled model was trained on
all patients. The models of the folds predict the patients that they were not trained on. From these
predictions the script fits temperature and threshold (on the sample) and smoothing (on the patients
whose patches are complete), and computes the metrics of the card. It writes wsi_idc/models/bundled/
and docs/images/.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from held_out import (
    compare_smoothing,
    complete_patients,
    fold_runs,
    held_out_predictions,
    metrics_of,
    natural_rows,
    smoothing_lines,
    smoothing_of,
    temperature_of,
    threshold_of,
    with_interval,
    with_probability,
)
from torch import Tensor

from wsi_idc.core.files import write_json, write_text
from wsi_idc.core.progress import set_up_logging
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.evaluate import evaluate
from wsi_idc.evaluation.gallery import false_negatives, false_positives
from wsi_idc.evaluation.results import Evaluation, MetricSet
from wsi_idc.evaluation.robustness import robustness
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.metrics.classification import nan_to_none, records
from wsi_idc.metrics.patients import border_distances, patient_table
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_idc.models.checkpoint_files import bundled_checkpoint
from wsi_idc.render.render import render_map
from wsi_idc.runtime.device import select_device

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs/images"
JOB = "bundled-jobs-bundled"  # start of the names of the runs
CHANGE_COLUMNS = ("auc", "sensitivity", "specificity", "mean_novelty", "cautions")
PICTURED = "8864"  # patient with all patches
MIN_PATCHES, NUM_WEAK = 30, 8  # of a patient in the table of the weakest patients; its rows


def main(data: Path, natural: Path, runs: Path) -> None:
    """Calibrate and evaluate the model; write the model, its card and the pictures."""
    set_up_logging(0)
    pack, sample, device_config = Pack(data), Pack(natural), select_device(precision="fp32")
    fold_folders = fold_runs(runs / JOB)
    table = held_out_predictions(pack, fold_folders)
    table["border_distance"] = border_distances(
        *(table[column].to_numpy() for column in ("label", "slide")),
        table[["row", "col"]].to_numpy(np.int32),
    )
    temperature = temperature_of(natural_rows(table, sample))
    table = with_probability(table, temperature)
    drawn, whole = natural_rows(table, sample), complete_patients(table)
    final = metrics_of(drawn, threshold_of(drawn))
    patch_um = pack.info.patch_px * pack.info.mpp

    def calibrated(run: Path, whole: pd.DataFrame) -> Checkpoint:
        """Return the checkpoint of a run, with a smoothing that is fitted to ``whole``."""
        trained, (gaussian, neighbors) = (
            load_checkpoint(run / "best.pt"),
            smoothing_of(whole, patch_um),
        )
        return replace(
            trained,
            temperature=temperature,
            threshold=final.threshold,
            smoothing=gaussian,
            neighbors=neighbors,
            metrics={"epoch": trained.metrics["epoch"], "held-out": nan_to_none(final.metrics)},
        )

    target = bundled_checkpoint()
    save_checkpoint(target, calibrated(runs / f"{JOB}-all.csv", whole))
    checkpoint = load_checkpoint(target)
    val = evaluate(
        Predictor((checkpoint,)),
        pack,
        sorted(checkpoint.patients("val")),
        split="val",
        device_config=device_config,
        batch_size=256,
    )
    fold = calibrated(fold_folders[0], whole)
    tested = sorted(fold.patients("test").intersection(sample.patients))
    changes = robustness(Predictor((fold,)), sample, tested, device_config=device_config)
    by_fold = [metrics_of(each, final.threshold) for _, each in drawn.groupby("fold")]
    thinned = table.drop(index=drawn.index.union(whole.index))
    columns = [final, metrics_of(whole, final.threshold), metrics_of(thinned, final.threshold)]
    comparison = compare_smoothing(table, final.threshold, patch_um)
    write_json(
        target.with_suffix(".metrics.json"),
        {
            "val": val.final.as_dict(),
            "held-out": {
                name: each.as_dict()
                for name, each in zip(("sample", "whole", "thinned"), columns, strict=True)
            },
            "folds": [each.as_dict() for each in by_fold],
            "smoothing": records(comparison),
            "robustness": records(changes),
        },
    )
    values = {
        **facts(checkpoint, pack, sample),
        "tested": len(tested),
        "metrics": "\n".join(
            f"| {name} | {' | '.join(with_interval(column, name) for column in columns)} |"
            for name in final.metrics
        ),
        "folds": "\n".join(map(fold_row, range(len(by_fold)), by_fold)),
        "smoothing_rows": "\n".join(smoothing_lines(comparison)),
        "weak": weak_patients(drawn, final),
        "robustness": "\n".join(
            f"| {row['change']} | "
            + " | ".join(f"{row[name]:.3f}" for name in CHANGE_COLUMNS)
            + " |"
            for row in changes.to_dict("records")
        ),
        **{name: final.metrics[name] for name in ("auc", "average_precision")},
    }
    text = (ROOT / "tools/card.md").read_text(encoding="utf-8").format(**values)
    write_text(target.with_suffix(".md"), text)
    write_galleries(replace(val, predictions=drawn.drop(columns="slide"), final=final), pack)
    own = int(table.loc[table["patient"] == PICTURED, "fold"].iloc[0])
    pictured = calibrated(fold_folders[own], whole[whole["patient"] != PICTURED])
    maps = Path("maps/bundled")
    MapBuilder(Predictor((pictured,)), device_config, maps).build(PackSource(pack, [PICTURED]))
    render_map(maps / f"{PICTURED}.h5", IMAGES / "map.png", dpi=200)


def facts(checkpoint: Checkpoint, pack: Pack, sample: Pack) -> dict[str, object]:
    """Return values of the card: the model and its data."""
    assert checkpoint.smoothing is not None and checkpoint.neighbors is not None
    return {
        "model": checkpoint.architecture,
        "size": sum(map(Tensor.numel, checkpoint.build().parameters())),
        "megabytes": bundled_checkpoint().stat().st_size / 1e6,
        "input_px": checkpoint.input.input_px or checkpoint.input.patch_px,
        "patches": len(pack),
        "patients": len(pack.patients),
        "sample": len(sample),
        "train": len(checkpoint.patients("train")),
        "val": len(checkpoint.patients("val")),
        "epoch": checkpoint.metrics["epoch"],
        "config": json.dumps(checkpoint.config),
        "threshold": checkpoint.threshold,
        "temperature": checkpoint.temperature,
        "smoothed_threshold": checkpoint.neighbors.threshold,
        "weights": len(checkpoint.neighbors.weights) + 1,
        "sigma_um": checkpoint.smoothing.sigma_um,
    }


def fold_row(number: int, fold: MetricSet) -> str:
    """Return a row of a Markdown table with the metrics of a fold."""
    names = ("auc", "average_precision", "sensitivity", "specificity", "ece")
    cells = [with_interval(fold, name) for name in names]
    return f"| {number} | {fold.num_patches:,} | {' | '.join(cells)} |"


def weak_patients(drawn: pd.DataFrame, final: MetricSet) -> str:
    """Return rows of a Markdown table: the patients with the smallest AUC."""
    patients = patient_table(drawn, "probability", threshold=final.threshold)
    weak = patients[patients["patches"] >= MIN_PATCHES].nsmallest(NUM_WEAK, "auc")
    return "\n".join(
        f"| {row.patient} | {row.patches} | {row.area_true:.1%} | {row.auc:.3f} | "
        f"{row.sensitivity:.3f} | {row.specificity:.3f} |"
        for row in weak.itertuples()
    )


def write_galleries(evaluation: Evaluation, pack: Pack) -> None:
    """Draw the most confident errors."""
    for draw in (false_positives, false_negatives):
        draw(evaluation, pack).savefig(IMAGES / f"bundled_{draw.__name__}.png", dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("natural", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    main(**vars(parser.parse_args()))
