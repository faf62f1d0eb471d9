"""``wsi-idc train``."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.options import PATH, config_options, json_option, logging_options, run_options
from wsi_idc.cli.output import echo, echo_json, echo_table
from wsi_idc.core.constants import DEFAULT_RUNS
from wsi_idc.training.config import TrainConfig

if TYPE_CHECKING:
    from wsi_idc.data.pack import Pack
    from wsi_idc.models.checkpoint import Checkpoint
    from wsi_idc.training.runs import Run

logger = logging.getLogger(__name__)


@click.command()
@config_options
@run_options
@click.option("--out", type=PATH, help="Run directory.  [default: runs/MODEL-DIGEST]")
@json_option
@logging_options
def train(
    data: Path | None,
    out: Path | None,
    device: str,
    micro_batch: int,
    compiled: bool,
    save_minutes: float,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a classifier of patches.

    Patients, not patches, are split. Stopped by Ctrl-C, SIGTERM or SIGUSR1 it saves and exits with
    75; the same command goes on where it was. DIGEST stands for the settings and the data.
    Several processes, started by torchrun or srun, one a device, train one model together.

    \b
    Examples:
      wsi-idc train --model cnn-bn
      wsi-idc train --model resnet50 --split kfold:5/0
      torchrun --nproc-per-node 4 --no-python wsi-idc train --model resnet50
    """
    from wsi_idc.core.progress import set_up_logging
    from wsi_idc.data.open_data import open_data
    from wsi_idc.data.splits import make_split, split_table
    from wsi_idc.runtime.device import select_device
    from wsi_idc.runtime.distributed import init_distributed
    from wsi_idc.runtime.signals import stop_requests
    from wsi_idc.training.resolve_config import resolve, resolved_config
    from wsi_idc.training.runs import Run, default_run
    from wsi_idc.training.train import train as run_training

    config = TrainConfig(**options)
    resolved = resolve(config)
    with init_distributed(device) as world:
        if not world.is_main:
            set_up_logging(-1)
        compute = select_device(device, config.precision, compiled=compiled)
        with world.main_first():
            pack = open_data(data)
        split = make_split(pack, config.split, seed=config.seed)
        asked = resolved_config(config, pack, split)
        run = Run(out) if out else default_run(DEFAULT_RUNS, resolved.model, asked)
        for line in _describe(resolved, pack, split.spec, split_table(split, pack), run.folder):
            logger.info("%s", line)
        was_finished = run.is_finished() and not overwrite
        with stop_requests() as stop:
            checkpoint = run_training(
                config,
                pack,
                split,
                run=run,
                device_config=compute,
                world=world,
                overwrite=overwrite,
                micro_batch=micro_batch,
                save_minutes=save_minutes,
                stop=stop,
            )
    if world.is_main:
        _say_result(run, checkpoint, was_finished=was_finished, as_json=as_json)


def _say_result(run: "Run", checkpoint: "Checkpoint", *, was_finished: bool, as_json: bool) -> None:
    found = checkpoint.metrics["val"]
    if as_json:
        smoothing = checkpoint.smoothing
        echo_json(
            {
                "run": run.folder,
                "checkpoint": run.best,
                "was_finished": was_finished,
                "best_epoch": checkpoint.metrics["epoch"],
                "threshold": checkpoint.threshold,
                "threshold_rule": _rule(checkpoint),
                "temperature": checkpoint.temperature,
                "smoothing": None if smoothing is None else vars(smoothing),
                **found,
            }
        )
        return
    if was_finished:
        echo(f"{run.folder} is finished already; --overwrite trains anew")
    names = ("auc", "average_precision", "f1", "sensitivity", "specificity")
    echo_table(
        [
            ("checkpoint", run.best),
            ("best epoch", checkpoint.metrics["epoch"]),
            ("val", ", ".join(f"{name} {found[name]:.3f}" for name in names)),
            ("threshold", f"{checkpoint.threshold:.3f} ({_rule(checkpoint)})"),
            (
                "temperature",
                f"{checkpoint.temperature:.3f} (ECE on val {found['ece_uncalibrated']:.3f} "
                f"-> {found['ece']:.3f})",
            ),
            ("next", f"wsi-idc eval {run.folder}; wsi-idc map --all --checkpoint {run.folder}"),
        ]
    )


def _rule(checkpoint: "Checkpoint") -> str:
    """Return in words how the threshold was chosen."""
    if target := checkpoint.config["target_sensitivity"]:
        return f"sensitivity of at least {target:g} on val"
    return {"f1": "largest F1 on val", "youden": "largest Youden index on val"}[
        checkpoint.config["threshold_by"]
    ]


def _describe(config: TrainConfig, data: "Pack", spec: str, table: Any, folder: Path) -> list[str]:
    """Return lines that say what is going to be trained on what."""
    settings = ", ".join(f"{name} {value}" for name, value in config.as_dict().items())
    lines = [f"run: {folder}", f"data: {data}", f"settings: {settings}", f"split: {spec}"]
    for role, row in table.iterrows():
        lines.append(
            f"  {role:<8} {row.patients:5.0f} patients {row.patches:7.0f} patches, "
            f"{row.idc_fraction:.1%} IDC"
        )
    if "left out" in table.index and spec == "canonical":
        lines.append(
            "  (left out: in no published list; --split canonical+unlisted trains on them)"
        )
    return lines
