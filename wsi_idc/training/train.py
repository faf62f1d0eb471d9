"""Training of a classifier on the train patients of a pack, with validation on the val patients.

Stopping and resuming a training does not change its final weights.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wsi_idc.core.errors import RunError
from wsi_idc.core.progress import progress
from wsi_idc.core.text import join_items
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split
from wsi_idc.models.checkpoint import Checkpoint, save_checkpoint
from wsi_idc.models.checkpoint_files import find_weights
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.distributed import SINGLE_PROCESS, World
from wsi_idc.runtime.signals import StopRequest, raise_if_stopped, stopped_error
from wsi_idc.runtime.throughput import ThroughputStats
from wsi_idc.training import validation
from wsi_idc.training.batches import read_batches
from wsi_idc.training.config import (
    TrainConfig,
    is_weights_file,
    monitored_value,
    resolve,
    resolved_config,
)
from wsi_idc.training.logger import RunLogger
from wsi_idc.training.metric_loggers import parse_loggers
from wsi_idc.training.optimizer import lr_factor, plateau_factor
from wsi_idc.training.probe import fit_probe
from wsi_idc.training.runs import Run
from wsi_idc.training.setup import build_training
from wsi_idc.training.state import Training, resume, save_state, to_checkpoint
from wsi_idc.training.step import prepare_model, train_step
from wsi_idc.training.time_left import TimeLeft

logger = logging.getLogger(__name__)

MINUTES_BETWEEN_SAVES = 5.0
# The loss is not read after each step, because reading it waits for the device.
_STEPS_BETWEEN_LOSS_READS = 20


def train(
    config: TrainConfig,
    pack: Pack,
    split: Split,
    *,
    run: Run,
    device_config: DeviceConfig,
    world: World = SINGLE_PROCESS,
    overwrite: bool = False,
    micro_batch: int = 0,
    save_minutes: float = MINUTES_BETWEEN_SAVES,
    store_encoder: bool = False,
    stop: StopRequest | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    loggers: Sequence[str] | None = None,
) -> Checkpoint:
    """Train a classifier, or resume a stopped training, and return the final checkpoint.

    If the run is finished and ``overwrite`` is False, its checkpoint is loaded. If only
    settings in ``CALIBRATION_FIELDS`` changed, the checkpoint is calibrated again.

    Args:
        config: Settings of the training.
        pack: Pack that contains the train and val patches.
        split: Role of each patient.
        run: Run directory for all results.
        device_config: Device and precision.
        world: Group of processes that train together.
        overwrite: Whether to replace a finished run or a run with other settings. An unfinished
            run with the same settings is always resumed, because a cluster restarts a job with the
            same flags.
        micro_batch: Number of patches that a process computes at once; 0: all patches of its part
            of the batch. The number of patches per step does not change.
        save_minutes: Minutes between two saves within an epoch.
        store_encoder: Whether the checkpoint of a linear probe contains the weights of its encoder.
            They are also added to the checkpoint of a finished run, and never removed.
        stop: Request of the user to save and stop; checked after each step.
        on_epoch: Function that gets the record of each epoch after the epoch is saved. If the
            function raises an exception, the training stops and can be resumed.
        loggers: Names of the metric loggers; None means TensorBoard, if it is installed.

    Raises:
        StoppedError: ``stop`` was set. The state is saved, and the same call resumes the training.
        RunError: ``run`` has other settings, the loss is not finite, or there is too little memory.
        CheckpointError: A model or its weights cannot be used, or the licence of an encoder does
            not permit ``store_encoder``.
    """
    settings = resolved_config(config, pack, split)
    # Check the arguments before the folder is created.
    run.validate_dir()
    devices: Any = {"device_config": device_config, "world": world}
    load_finished = partial(
        validation.load_or_recalibrate, config, pack, run, store_encoder=store_encoder, **devices
    )
    if not overwrite:
        run.validate_config(settings)
        if _is_finished(run, world):
            return load_finished()
    elif is_weights_file(config.weights):
        run.protect_weights(find_weights(Path(config.weights)))
    options = {"run": run, "micro_batch": micro_batch, **devices}
    if config.is_probe and world.size > 1:
        raise RunError(
            f"freeze {config.freeze} uses one process; start the training without torchrun"
        )
    training = build_training(resolve(config), pack, split, **options)
    world.barrier()
    try:
        with run.lock() if world.is_main else nullcontext():
            # Check again: another process may have trained here before this process got the lock.
            if world.is_main and not overwrite:
                run.validate_config(settings)
            if overwrite or not _is_finished(run, world):
                if config.is_probe:
                    options = {"store_encoder": store_encoder, "on_epoch": on_epoch}
                    return fit_probe(training, settings, stop=stop, **options)
                return _run_epochs(
                    training,
                    settings,
                    stop=stop,
                    save_seconds=60 * save_minutes,
                    on_epoch=on_epoch,
                    loggers=parse_loggers(None) if loggers is None else loggers,
                )
    # Memory ran out outside a step; inside a step, ``train_step`` handles this error.
    except torch.OutOfMemoryError:
        raise RunError(
            f"out of memory on {device_config.device}; give --micro-batch "
            f"{max(1, training.micro_batch // 2)}, or a smaller --input-size or --model"
        ) from None
    return load_finished()


def _is_finished(run: Run, world: World) -> bool:
    """Return whether the run is finished; all processes get the answer of the main process."""
    return bool(world.max(int(world.is_main and run.is_finished())))


def _run_epochs(
    training: Training,
    settings: dict[str, Any],
    *,
    stop: StopRequest | None,
    save_seconds: float,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    loggers: Sequence[str],
) -> Checkpoint:
    run, world = training.run, training.world
    is_resumable = run.exists() and run.read().get("asked") == settings and not run.is_finished()
    if world.is_main and not is_resumable:
        run.start(settings, {"provenance": training.provenance})
    world.barrier()
    if run.last.exists():
        resume(training)
    state = training.state
    with RunLogger(training, loggers=loggers) as run_logger:
        time_left = TimeLeft(training)
        while not training.is_complete:
            _train_epoch(training, stop, save_seconds=save_seconds, time_left=time_left)
            _finish_epoch(training, time_left)
            run_logger.log_epoch()
            if on_epoch is not None:
                on_epoch(dict(state.history[-1]))
    checkpoint = validation.calibrate_and_save(training)
    if world.is_main:
        details = {"provenance": training.provenance, "best": checkpoint.metrics}
        run.write("finished", settings, details)
    return checkpoint


def run_steps(training: Training) -> Iterator[int]:
    """Train on the remaining batches of the current epoch; yield the size of each batch."""
    state, config = training.state, training.config
    prepare_model(training)
    plateau = plateau_factor(config, [monitored_value(r, config.monitor) for r in state.history])

    def set_rate(step: int) -> None:
        step += state.epoch * training.steps_per_epoch
        total = config.epochs * training.steps_per_epoch
        factor = plateau * lr_factor(config, step, total=total)
        for group in training.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    # If no steps are left, the epoch's record still needs the rate of the last finished step.
    set_rate(max(0, state.step - 1))
    steps = range(state.step, training.steps_per_epoch)
    batches = read_batches(
        config, training.source, epoch=state.epoch, steps=steps, world=training.world
    )
    usage = training.device_config.throughput
    for batch in usage.time_data_wait(batches):
        set_rate(state.step)
        num_patches = len(batch.all_targets.label)
        with usage.time_compute(num_patches):
            train_step(training, batch)
        state.step += 1
        yield num_patches


def _train_epoch(
    training: Training, stop: StopRequest | None, *, save_seconds: float, time_left: TimeLeft
) -> None:
    """Train on the remaining batches of the current epoch; save at intervals and before a stop."""
    state, world, usage = training.state, training.world, training.device_config.throughput
    usage.start()
    last_save = time.monotonic()
    started = last_save - state.seconds
    title = f"epoch {state.epoch + 1}/{training.config.epochs}"
    if state.step:
        logger.info("resuming %s after %d steps", title, state.step)
    size = training.patches_per_step
    total, done = training.steps_per_epoch * size, state.step * size
    loss_text = ""
    with progress(total, what=title, done=done, is_short=True) as bar:
        for num_patches in run_steps(training):
            items = (time_left.percent(), str(time_left), loss_text)
            bar.set_postfix_str(", ".join(filter(None, items)), refresh=False)
            bar.update(num_patches)
            now = time.monotonic()
            # Order 1 is to save, 2 to save and stop. All processes follow the largest order.
            order = world.max(2 if stop else int(world.is_main and now - last_save > save_seconds))
            if order or state.step % _STEPS_BETWEEN_LOSS_READS == 0:
                loss = _mean_loss(training)
                loss_text = f"loss {loss:.3f}"
            if order:
                state.seconds, last_save = now - started, now
                save_state(training)
            if order == 2:
                saved = f" in {title}, saved in {training.run.folder}"
                raise_if_stopped(stop, saved)
                raise stopped_error("a signal to another process", saved)
    state.seconds = time.monotonic() - started


def _mean_loss(training: Training) -> float:
    """Return the mean loss of the current epoch; raise RunError if the loss is not finite."""
    state = training.state
    state.loss_sum += training.world.sum(float(training.pending_loss))
    training.pending_loss.zero_()
    if math.isfinite(state.loss_sum):
        return state.loss_sum / state.step
    raise validation.divergence_error(training)


def _finish_epoch(training: Training, time_left: TimeLeft) -> None:
    """Validate the model; save a checkpoint if this epoch is the best so far; save the state."""
    state, config = training.state, training.config
    loss = _mean_loss(training)
    # Usage of the device by this process since it started or resumed the epoch.
    usage = training.device_config.throughput.stats()
    logit, label = validation.predict_val(training)
    state.epoch += 1
    record = {
        "epoch": state.epoch,
        "train_loss": loss,
        **validation.val_metrics(logit, label, log_odds_shift=training.log_odds_shift),
        "learning_rate": training.optimizer.param_groups[0]["lr"],
        "patches_per_second": training.steps_per_epoch * training.patches_per_step / state.seconds,
        **(usage.shares if usage.num_patches else {}),
    }
    state.history.append(record)
    monitored = monitored_value(record, config.monitor)
    is_best = monitored > state.best
    if is_best:
        state.best, state.best_epoch = monitored, state.epoch
        if training.world.is_main:
            save_checkpoint(training.run.best, to_checkpoint(training))
    state.step, state.loss_sum, state.seconds = 0, 0.0, 0.0
    save_state(training)
    _log_epoch(training, time_left, is_best=is_best, usage=usage)


def _log_epoch(
    training: Training, time_left: TimeLeft, *, is_best: bool, usage: ThroughputStats
) -> None:
    config, record = training.config, training.state.history[-1]
    line = (
        f"epoch {record['epoch']}/{config.epochs}: train loss {record['train_loss']:.4f}, "
        f"val loss {record['val_loss']:.4f}, AUC {record['val_auc']:.4f}, "
        f"AP {record['val_average_precision']:.4f}, largest F1 {record['val_largest_f1']:.3f} "
        f"at the threshold {record['val_largest_f1_threshold']:.2f}, "
        f"{'best epoch so far, ' if is_best else ''}{record['patches_per_second']:.0f} patches/s, "
        f"{usage}, {time_left.percent()}, "
    )
    if training.is_complete and record["epoch"] < config.epochs:
        line += f"stops early: no better epoch in the last {config.patience}"
    else:
        line += str(time_left)
    logger.info("%s", join_items(line.split(", ")))
