"""Make the bundled model, its model card and the README's picture from a pack of real patches.

    python tools/bundle.py data/idc.h5 [--keep-weights]

Trains in runs/bundled (a stopped training goes on), or with --keep-weights calibrates the present
weights anew; evaluates on the val and test patients of the published lists, and writes
wsi_idc/models/bundled/ and docs/images/.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from wsi_idc.config import TrainConfig
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split, make_split, split_table
from wsi_idc.files import write_json, write_text
from wsi_idc.hpc.preempt import stop_requests
from wsi_idc.learn.evaluate import Evaluation, choose_patients, evaluate
from wsi_idc.learn.judge import recalibrated
from wsi_idc.learn.method import Method
from wsi_idc.learn.runs import Run
from wsi_idc.learn.train import train
from wsi_idc.maps.build import build_maps
from wsi_idc.maps.render import render_map
from wsi_idc.maps.work import MapWork
from wsi_idc.models.checkpoint import (
    Checkpoint,
    bundled_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from wsi_idc.models.device import choose_compute
from wsi_idc.progress import set_up_logging

ROOT = Path(__file__).resolve().parents[1]
CONFIG = TrainConfig(model="cnn-bn", split="canonical+unlisted")
_BEFORE = " (`light` was then flips and quarter turns alone, and no running average was kept.)"
PICTURED = "8864"  # a test patient, whole


def main(data: Path, *, keep_weights: bool) -> None:
    """Train or calibrate, evaluate, write card and picture."""
    set_up_logging(0)
    pack, compute = Pack(data), choose_compute()
    if keep_weights:
        present = load_checkpoint(bundled_checkpoint())
        calibrated = recalibrated(present, CONFIG, pack, compute=compute)
        save_checkpoint(bundled_checkpoint(), calibrated)
        checkpoint = load_checkpoint(bundled_checkpoint())
    else:
        split, run = make_split(pack, CONFIG.split, seed=CONFIG.seed), Run(Path("runs/bundled"))
        with stop_requests() as stop:
            checkpoint = train(CONFIG, pack, split, run=run, compute=compute, stop=stop)
        shutil.copy(run.best, bundled_checkpoint())
    method = Method((checkpoint,))
    found = {
        role: evaluate(
            method,
            pack,
            choose_patients(method, pack, role),
            split=role,
            compute=compute,
            batch_size=256,
        )
        for role in ("val", "test")
    }
    target = bundled_checkpoint()
    metrics = {role: evaluation.as_dict() for role, evaluation in found.items()}
    write_json(target.with_suffix(".metrics.json"), metrics)
    split = Split(checkpoint.split_spec, checkpoint.split)
    table = split_table(split, pack).reset_index(names="role").to_dict("records")
    write_text(target.with_suffix(".md"), card(checkpoint, found, table))
    maps = Path("maps/bundled")
    build_maps(MapWork(method, compute, maps), pack, [PICTURED])
    render_map(maps / f"{PICTURED}.h5", ROOT / "docs/images/map.png", dpi=200)


def card(checkpoint: Checkpoint, found: dict[str, Evaluation], table: list[dict[str, Any]]) -> str:
    """Return the model card as Markdown."""
    size = sum(value.numel() for value in checkpoint.state.values())
    split = "\n".join(
        f"| {row['role']} | {row['patients']} | {row['patches']} | {row['idc_fraction']:.1%} |"
        for row in table
    )
    names = list(found["test"].judged.metrics)
    rows = "\n".join(
        f"| {name} | " + " | ".join(with_interval(found[role], name) for role in found) + " |"
        for name in names
    )
    worst = found["test"].patients.query("patches >= 30").nsmallest(5, "auc")
    weak = "\n".join(
        f"| {row.patient} | {row.patches} | {row.area_true:.1%} | {row.auc:.3f} | "
        f"{row.sensitivity:.3f} | {row.specificity:.3f} |"
        for row in worst.itertuples()
    )
    return (
        (ROOT / "tools/card.md")
        .read_text(encoding="utf-8")
        .format(
            size=size,
            epoch=checkpoint.metrics["epoch"],
            config=json.dumps(checkpoint.config),
            before="" if "ema" in checkpoint.config else _BEFORE,
            threshold=checkpoint.threshold,
            temperature=checkpoint.temperature,
            smoothing=checkpoint.smoothing,
            split=split,
            rows=rows,
            weak=weak,
        )
    )


def with_interval(evaluation: Evaluation, name: str) -> str:
    """Return a metric as text, with its interval."""
    low, high = evaluation.judged.intervals[name]
    return f"{evaluation.judged.metrics[name]:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main(Path(sys.argv[1]), keep_weights="--keep-weights" in sys.argv[2:])
