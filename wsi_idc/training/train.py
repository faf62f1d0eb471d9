"""Train a classifier on the train patients of a pack, watched on its val patients.

Every random draw is a function of the seed and of the place in the training (epoch, step), never
of what was drawn before: so a stopped training resumes to the very same weights.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from wsi_idc.core.errors import RunError
from wsi_idc.core.progress import progress
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split
from wsi_idc.inference.calibration import idc_probability
from wsi_idc.metrics import classification as metrics
from wsi_idc.models.checkpoint import Checkpoint, save_checkpoint
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.distributed import SINGLE_PROCESS, World
from wsi_idc.runtime.signals import StopRequest, raise_if_stopped, stopped_error
from wsi_idc.training.batches import batches
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.logger import RunLogger
from wsi_idc.training.optimizer import lr_factor, plateau_factor, set_learning_rate
from wsi_idc.training.resolve_config import is_file, resolve, resolved_config
from wsi_idc.training.resume import resume, save_state, to_checkpoint
from wsi_idc.training.runs import Run
from wsi_idc.training.setup import build_training
from wsi_idc.training.state import Training
from wsi_idc.training.step import prepare_model, step
from wsi_idc.training.validation import (
    calibrate_and_save,
    divergence_error,
    read_or_recalibrate,
    val_logits,
)

logger = logging.getLogger(__name__)

MINUTES_BETWEEN_SAVES = 5.0
# Looking at the loss waits for the device.
_STEPS_BETWEEN_LOOKS = 20


def train(
    config: TrainConfig,
    pack: Pack,
    split: Split,
    *,
    run: Run,
    compute: DeviceConfig,
    world: World = SINGLE_PROCESS,
    overwrite: bool = False,
    micro_batch: int = 0,
    save_minutes: float = MINUTES_BETWEEN_SAVES,
    stop: StopRequest | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Checkpoint:
    """Train, or go on with a training that was stopped, and return the finished checkpoint.

    A finished run is only read, unless ``overwrite`` trains it anew; where it asked for another
    threshold, that is set anew.

    Args:
        config: What decides the weights.
        pack: The data.
        split: Role of each patient.
        run: Where all of it is kept.
        compute: Device and precision.
        world: The processes that train together, this one among them.
        overwrite: Replace a run that is there, unless it is this very one, unfinished.
        micro_batch: Patches that a process computes at once; 0: its part of a batch. More are
            accumulated into one step.
        save_minutes: Save so often within an epoch.
        stop: Asks to save and leave.
        on_epoch: Is given each epoch's record when it is saved; what it raises ends the training
            here, to be gone on with.

    Raises:
        StoppedError: ``stop`` was set; everything is saved and the same call goes on.
        RunError: ``run`` holds a training with other settings, the loss is not finite, or memory
            ran out.
    """
    asked = resolved_config(config, pack, split)
    # Whatever can be refused is refused before the folder is made.
    run.validate_dir()
    if not overwrite:
        run.check_same(asked)
        if _is_finished(run, world):
            return read_or_recalibrate(config, pack, run, compute=compute, world=world)
    elif is_file(config.weights):
        run.protect_weights(Path(config.weights))
    training = build_training(
        resolve(config),
        pack,
        split,
        run=run,
        compute=compute,
        world=world,
        micro_batch=micro_batch,
    )
    world.wait()
    try:
        with run.held(by=world.is_writer):
            # Asked again: another process may have trained here before this one had the lock.
            if world.is_writer and not overwrite:
                run.check_same(asked)
            if overwrite or not _is_finished(run, world):
                return _train(
                    training, asked, stop=stop, save_seconds=60 * save_minutes, on_epoch=on_epoch
                )
    # Elsewhere than in a step, where a smaller part of the batch helps.
    except torch.OutOfMemoryError:
        raise RunError(
            f"out of memory on {compute.device}; give --micro-batch "
            f"{max(1, training.micro_batch // 2)}, or a smaller --input-size or --model"
        ) from None
    return read_or_recalibrate(config, pack, run, compute=compute, world=world)


def _is_finished(run: Run, world: World) -> bool:
    """Return whether the run came to its end, as its writer sees it: all must do the same."""
    return bool(world.largest(int(world.is_writer and run.is_finished())))


def _train(
    training: Training,
    asked: dict[str, Any],
    *,
    stop: StopRequest | None,
    save_seconds: float,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> Checkpoint:
    """Do what is left of a training whose run this process, or its writer, holds."""
    run, world = training.run, training.world
    # What is unfinished and just this is gone on with, also by a job that asks to overwrite
    # each time that it is put back into the queue.
    begun = run.matches(asked) and not run.is_finished()
    if world.is_writer and not begun:
        run.start(asked, {"provenance": training.record})
    world.wait()
    if run.last.exists():
        resume(training)
    with RunLogger(training) as journal:
        while not _is_over(training):
            _train_epoch(training, stop, save_seconds=save_seconds)
            _close_epoch(training)
            journal.note()
            if on_epoch is not None:
                on_epoch(dict(training.place.history[-1]))
    checkpoint = calibrate_and_save(training)
    if world.is_writer:
        best = {"epoch": training.place.best_epoch, **checkpoint.metrics}
        run.write("finished", asked, {"provenance": training.record, "best": best})
    return checkpoint


def _is_over(training: Training) -> bool:
    place, config = training.place, training.config
    waited = place.epoch - place.best_epoch
    return place.epoch >= config.epochs or (place.epoch > 0 and waited >= config.patience)


def steps(training: Training) -> Iterator[int]:
    """Do the steps that are left of the present epoch; yield the size of each batch after it."""
    place, config = training.place, training.config
    prepare_model(training)
    first = place.epoch * training.steps_an_epoch
    total = config.epochs * training.steps_an_epoch
    plateau = plateau_factor(config, [_value(config, record) for record in place.history])

    def set_rate_of(step: int) -> None:
        set_learning_rate(
            training.optimizer, plateau * lr_factor(config, first + step, total=total)
        )

    # Of the last step done: where a stop left none to do, the epoch is noted with it.
    set_rate_of(max(0, place.step - 1))
    coming = batches(
        config,
        training.pack,
        training.rows["train"],
        epoch=place.epoch,
        first_step=place.step,
        num_steps=training.steps_an_epoch,
        world=training.world,
        source=training.source,
    )
    usage = training.compute.usage
    for batch in usage.time_data_wait(coming):
        set_rate_of(place.step)
        with usage.time_compute(len(batch.all_labels.label)):
            step(training, batch)
        place.step += 1
        yield len(batch.all_labels.label)


def _train_epoch(training: Training, stop: StopRequest | None, *, save_seconds: float) -> None:
    """Do the steps that are left of the present epoch, and save now and then."""
    place, config, world = training.place, training.config, training.world
    training.compute.usage.begin()
    saved = time.monotonic()
    started = saved - place.seconds
    what = f"epoch {place.epoch + 1}/{config.epochs}"
    if place.step:
        logger.info("going on in %s after %d steps", what, place.step)
    with progress(
        training.steps_an_epoch * training.patches_a_step,
        what=what,
        done=place.step * training.patches_a_step,
    ) as bar:
        for num_patches in steps(training):
            bar.update(num_patches)
            now = time.monotonic()
            due = now - saved > save_seconds and world.is_writer
            # All of them must do the same.
            order = world.largest(2 if stop else int(due))
            if order or place.step % _STEPS_BETWEEN_LOOKS == 0:
                loss = _mean_loss(training)
                waiting = training.compute.usage.summary_line()
                bar.set_postfix_str(f"loss {loss:.3f}, {waiting}", refresh=False)
            if order:
                place.seconds, saved = now - started, now
                save_state(training)
            if order == 2:
                state = f" in {what}, saved in {training.run.folder}"
                raise_if_stopped(stop, state)
                raise stopped_error("a signal to another process", state)
    place.seconds = time.monotonic() - started


def _mean_loss(training: Training) -> float:
    """Return the mean loss of the epoch so far, over all processes.

    Raises:
        RunError: It is not finite; what was saved before stays.
    """
    place = training.place
    place.loss_sum += training.world.sum(float(training.pending_loss))
    training.pending_loss.zero_()
    if math.isfinite(place.loss_sum):
        return place.loss_sum / place.step
    raise divergence_error(training)


def _close_epoch(training: Training) -> None:
    """Look at the val patients, keep the weights if they are the best, and save the state."""
    place, run, config = training.place, training.run, training.config
    loss = _mean_loss(training)
    # Of this process alone, and since it began or went on with the epoch.
    used = training.compute.usage.used()
    logit, label = val_logits(training)
    probability = idc_probability(logit, temperature=1.0)
    place.epoch += 1
    found = metrics.all_metrics(label, probability, threshold=0.5)
    epoch = {
        "epoch": place.epoch,
        "train_loss": loss,
        "val_loss": float(F.cross_entropy(torch.from_numpy(logit), torch.from_numpy(label))),
        **{
            f"val_{name}": value
            for name, value in found.items()
            if name != "prevalence" and not math.isnan(value)
        },
        "learning_rate": training.optimizer.param_groups[0]["lr"],
        "patches_per_second": training.steps_an_epoch * training.patches_a_step / place.seconds,
        **(used.shares() if used.num_patches else {}),
    }
    place.history.append(epoch)
    is_best = _value(config, epoch) > place.best
    if is_best:
        place.best, place.best_epoch = _value(config, epoch), place.epoch
        if training.world.is_writer:
            save_checkpoint(run.best, to_checkpoint(training))
    place.step, place.loss_sum, place.seconds = 0, 0.0, 0.0
    save_state(training)
    logger.info(
        "epoch %d/%d: train loss %.4f, val loss %.4f, AUC %.4f, AP %.4f, F1 %.3f, sensitivity "
        "%.3f%s, %.0f patches/s, %s",
        place.epoch,
        config.epochs,
        *(epoch[key] for key in ("train_loss", "val_loss", "val_auc", "val_average_precision")),
        *(epoch[key] for key in ("val_f1", "val_sensitivity")),
        " (best)" if is_best else "",
        epoch["patches_per_second"],
        used,
    )


def _value(config: TrainConfig, epoch: dict[str, Any]) -> float:
    """Return what is monitored in an epoch, larger being better."""
    value = epoch[f"val_{config.monitor}"]
    return -value if config.monitor == "loss" else value
