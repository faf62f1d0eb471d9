"""Make the bundled model, its model card and the README's picture from a pack of real patches.

    python tools/bundle.py data/idc.h5

Trains in runs/bundled (a stopped training goes on), evaluates on the val and test patients of the
published lists, and writes wsi_idc/models/bundled/ and docs/images/.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from wsi_idc.config import TrainConfig
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import make_split, split_table
from wsi_idc.files import write_json, write_text
from wsi_idc.hpc.preempt import stop_requests
from wsi_idc.learn.evaluate import Evaluation, choose_patients, evaluate
from wsi_idc.learn.runs import Run
from wsi_idc.learn.train import train
from wsi_idc.maps.build import build_maps
from wsi_idc.maps.render import render_map
from wsi_idc.models.checkpoint import Checkpoint, bundled_checkpoint
from wsi_idc.models.device import choose_compute
from wsi_idc.progress import set_up_logging

ROOT = Path(__file__).resolve().parents[1]
CONFIG = TrainConfig(model="cnn-bn", split="canonical+unlisted")
PICTURED = "8864"  # a test patient, whole


def main(data: Path) -> None:
    """Train, evaluate, write card and picture."""
    set_up_logging(0)
    pack, compute = Pack(data), choose_compute()
    split = make_split(pack, CONFIG.split, seed=CONFIG.seed)
    with stop_requests() as stop:
        checkpoint = train(
            CONFIG, pack, split, run=Run(Path("runs/bundled")), compute=compute, stop=stop
        )
    found = {
        role: evaluate(
            checkpoint,
            pack,
            choose_patients(checkpoint, pack, role),
            split=role,
            compute=compute,
            batch_size=256,
        )
        for role in ("val", "test")
    }
    target = bundled_checkpoint()
    target.parent.mkdir(parents=True, exist_ok=True)
    assert checkpoint.source is not None
    shutil.copy(checkpoint.source, target)
    metrics = {role: evaluation.as_dict() for role, evaluation in found.items()}
    write_json(target.with_suffix(".metrics.json"), metrics)
    table = split_table(split, pack).reset_index(names="role").to_dict("records")
    write_text(target.with_suffix(".md"), card(checkpoint, found, table))
    maps = Path("maps/bundled")
    build_maps(checkpoint, pack, [PICTURED], maps, compute=compute)
    render_map(maps / f"{PICTURED}.h5", ROOT / "docs/images/map.png", dpi=200)


def card(checkpoint: Checkpoint, found: dict[str, Evaluation], table: list[dict[str, Any]]) -> str:
    """Return the model card as Markdown."""
    size = sum(value.numel() for value in checkpoint.state.values())
    split = "\n".join(
        f"| {row['role']} | {row['patients']} | {row['patches']} | {row['idc_fraction']:.1%} |"
        for row in table
    )
    names = list(found["test"].metrics)
    rows = "\n".join(
        f"| {name} | " + " | ".join(with_interval(found[role], name) for role in found) + " |"
        for name in names
    )
    worst = found["test"].patients.query("patches >= 30").nsmallest(5, "auc")
    weak = "\n".join(
        f"| {row.patient} | {row.patches} | {row.prevalence:.1%} | {row.auc:.3f} | "
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
            threshold=checkpoint.threshold,
            temperature=checkpoint.temperature,
            split=split,
            rows=rows,
            weak=weak,
        )
    )


def with_interval(evaluation: Evaluation, name: str) -> str:
    """Return a metric as text, with its interval where it has one."""
    text = f"{evaluation.metrics[name]:.3f}"
    if name in evaluation.intervals:
        low, high = evaluation.intervals[name]
        text += f" [{low:.3f}, {high:.3f}]"
    return text


if __name__ == "__main__":
    main(Path(sys.argv[1]))
