"""``wsi-idc train``: train a classifier of patches."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.config_file import config_option, source_text
from wsi_idc.cli.options import PATH, config_options, output_options, run_options
from wsi_idc.cli.output import echo_result, table_lines
from wsi_idc.core.constants import DEFAULT_RUNS
from wsi_idc.core.text import count, join_items
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.runs import DEFAULT

if TYPE_CHECKING:
    from wsi_idc.data.pack import Pack
    from wsi_idc.data.splits import Split
    from wsi_idc.models.checkpoint import Checkpoint
    from wsi_idc.training.runs import Run


logger = logging.getLogger(__name__)


@click.command()
@config_options
@run_options
@click.option("--out", type=PATH, help="Run directory.  [default: runs/MODEL-DIGEST]")
@config_option
@output_options
def train(
    data: Path | None,
    out: Path | None,
    device: str,
    micro_batch: int,
    compiled: bool,
    log_to: str | None,
    save_minutes: float,
    store_encoder: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a classifier of patches.

    The data are split by patients: all patches of a patient have the same role. At Ctrl-C, SIGTERM
    or SIGUSR1, the command saves the training and exits with 75; the same command resumes the
    training. The DIGEST in the name of a run is a hash of the settings and the data. The finished
    run becomes the default checkpoint (wsi-idc use). With torchrun or srun, several processes train
    one model together, one process per device. torchrun itself exits with 1 after Ctrl-C or
    SIGTERM, even if the training is saved. Do not send SIGUSR1 to torchrun.

    \b
    Examples:
      wsi-idc train --model cnn-bn
      wsi-idc train --model resnet50 --split kfold:5/0
      WANDB_MODE=offline wsi-idc train --log tensorboard,wandb
      torchrun --nproc-per-node 4 --no-python wsi-idc train --model resnet50
    """
    config = TrainConfig(**options)

    from wsi_idc.training.metric_loggers import parse_loggers

    loggers = parse_loggers(log_to)

    from wsi_idc.data.open_data import open_data
    from wsi_idc.data.splits import make_split
    from wsi_idc.training.runs import Run, check_default, default_run, set_default

    # Without a parent context, wsi-idc job runs this command. A job must not set the default.
    is_default = click.get_current_context().parent is not None
    if is_default:
        check_default(DEFAULT_RUNS, out)
    _check_files(config, data)  # before torch is imported

    from wsi_idc.core.progress import set_up_logging
    from wsi_idc.runtime.device import select_device
    from wsi_idc.runtime.distributed import init_distributed
    from wsi_idc.runtime.signals import stop_requests
    from wsi_idc.training.config import resolve, resolved_config
    from wsi_idc.training.train import train as run_training

    resolved = resolve(config)
    with init_distributed(device) as world:
        if not world.is_main:
            set_up_logging(-1)
        device_config = select_device(device, config.precision, compiled=compiled, training=True)
        with world.main_first():
            pack = open_data(data)
        split = make_split(pack, config.split, seed=config.seed)
        signature = resolved_config(config, pack, split)
        run = Run(out) if out else default_run(DEFAULT_RUNS, resolved.model, signature)
        _log_inputs(resolved, pack, split, run, ctx=click.get_current_context())
        was_finished = run.is_finished() and not overwrite
        with stop_requests() as stop:
            checkpoint = run_training(
                config,
                pack,
                split,
                run=run,
                device_config=device_config,
                world=world,
                overwrite=overwrite,
                micro_batch=micro_batch,
                save_minutes=save_minutes,
                store_encoder=store_encoder,
                stop=stop,
                loggers=loggers,
            )
    if world.is_main:
        if is_default:
            set_default(DEFAULT_RUNS, run.folder)
        record = _result_record(run, checkpoint, was_finished=was_finished)
        lines = [*_result_lines(run, checkpoint, was_finished=was_finished)]
        if is_default:
            lines.append(f"{DEFAULT_RUNS / DEFAULT} names this run, so commands use it by default")
        echo_result(record | {"is_default": is_default}, lines, as_json=as_json)


def _check_files(config: TrainConfig, data: Path | None) -> None:
    """Raise an error if the weights, the data or the split cannot be used."""
    from wsi_idc.data.open_data import default_data, find_pack, open_data
    from wsi_idc.data.splits import make_split
    from wsi_idc.training.config import weights_fingerprint

    weights_fingerprint(config)
    if not (data or default_data()).exists():
        open_data(data)
    elif packed := find_pack(data or default_data()):
        logging.disable()  # no log here: the training makes the same split again and logs it
        try:
            make_split(packed, config.split, seed=config.seed)
        finally:
            logging.disable(logging.NOTSET)


def _log_inputs(
    config: TrainConfig, pack: "Pack", split: "Split", run: "Run", *, ctx: click.Context
) -> None:
    from wsi_idc.data.splits import split_table

    logger.info("run: %s", run.folder)
    logger.info("data: %s", pack)
    settings = [f"{name} {value}{_source(ctx, name)}" for name, value in vars(config).items()]
    logger.info("%s", join_items([f"settings: {settings[0]}", *settings[1:]]))
    for line in _split_lines(split.spec, split_table(split, pack)):
        logger.info("%s", line)


def _source(ctx: click.Context, name: str) -> str:
    return f" ({text})" if (text := source_text(ctx, name)) else ""


def _split_lines(spec: str, table: Any) -> Iterator[str]:
    yield f"split: {spec}"
    for role, row in table.iterrows():
        patients = count(int(row.patients), "patient")
        patches = count(int(row.patches), "patch", "patches")
        yield f"  {role:<8} {patients:>14} {patches:>15}, {row.idc_fraction:.1%} IDC"
    if "left out" in table.index and spec == "canonical":
        yield "  (left out: not in the published lists; --split canonical+unlisted trains on them)"


def _result_record(run: "Run", checkpoint: "Checkpoint", *, was_finished: bool) -> dict[str, Any]:
    return {
        "run": run.folder,
        "checkpoint": run.best,
        "was_finished": was_finished,
        "best_epoch": checkpoint.metrics["epoch"],
        "threshold": checkpoint.threshold,
        "threshold_rule": _threshold_rule(checkpoint),
        "temperature": checkpoint.temperature,
        "smoothing": None if checkpoint.smoothing is None else vars(checkpoint.smoothing),
        "neighbors": None if checkpoint.neighbors is None else vars(checkpoint.neighbors),
        **checkpoint.metrics["val"],
    }


def _result_lines(run: "Run", checkpoint: "Checkpoint", *, was_finished: bool) -> Iterator[str]:
    if was_finished:
        yield f"{run.folder} is already finished; --overwrite trains again"
    val = checkpoint.metrics["val"]
    names = ("auc", "average_precision", "f1", "sensitivity", "specificity")
    values = ", ".join(f"{name} {val[name]:.3f}" for name in names)
    values = values.replace(", f1", f"; at the threshold {checkpoint.threshold:.3f}: f1")
    yield from table_lines(
        [
            ("checkpoint", run.best),
            ("best epoch", checkpoint.metrics["epoch"]),
            ("val", values),
            ("threshold", f"{checkpoint.threshold:.3f} ({_threshold_rule(checkpoint)})"),
            ("temperature", f"{checkpoint.temperature:.3f} ({_ece_text(checkpoint)})"),
            ("next", f"wsi-idc eval {run.folder}; wsi-idc map --all --checkpoint {run.folder}"),
        ]
    )


def _ece_text(checkpoint: "Checkpoint") -> str:
    val = checkpoint.metrics["val"]
    if checkpoint.temperature == 1:
        return f"ECE on val {val['ece']:.3f}; the fitted temperature increases the ECE"
    # Version 0.1.0 also kept a temperature that increases the ECE.
    is_worse = val["ece"] > val["ece_uncalibrated"]
    effect = ", worse: a temperature minimizes the cross-entropy, not the ECE" if is_worse else ""
    return f"ECE on val {val['ece_uncalibrated']:.3f} -> {val['ece']:.3f}{effect}"


def _threshold_rule(checkpoint: "Checkpoint") -> str:
    if target := checkpoint.config["target_sensitivity"]:
        return f"sensitivity of at least {target:g} on val"
    names = {"f1": "largest F1 on val", "youden": "largest Youden index on val"}
    return names[checkpoint.config["threshold_by"]]
