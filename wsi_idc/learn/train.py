"""Train a classifier on the train patients of a pack, watched on its val patients.

Every random draw is a function of the seed and of the place in the training (epoch, step), never
of what was drawn before: so a stopped training resumes to the very same weights.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wsi_idc.config import TrainConfig
from wsi_idc.data.augment import random_dihedral
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split
from wsi_idc.errors import RunError, StoppedError
from wsi_idc.hpc.preempt import StopRequest
from wsi_idc.learn import metrics
from wsi_idc.learn.calibrate import best_f1_threshold, fit_temperature, idc_probability
from wsi_idc.learn.predict import predict_logits
from wsi_idc.learn.runs import Run
from wsi_idc.learn.state import Training, as_checkpoint, resolve, resume, save_state, set_up
from wsi_idc.models.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from wsi_idc.models.classifier import IDC
from wsi_idc.models.device import Compute
from wsi_idc.progress import progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_SAVES = 300.0
_WARM_UP_SHARE = 0.05
_LAST_RATE_SHARE = 0.01
_CLIP_NORM = 5.0
_EVAL_BATCH = 256


def what_is_asked(config: TrainConfig, pack: Pack, split: Split) -> dict[str, Any]:
    """Return all that decides a training's result, JSON-ready."""
    roles = json.dumps(sorted(split.roles.items()))
    return {
        **resolve(config).as_dict(),
        "split": split.spec,
        "data": pack.info.source_fingerprint,
        "mpp": pack.info.mpp,
        "roles": hashlib.sha256(roles.encode()).hexdigest(),
    }


def train(
    config: TrainConfig,
    pack: Pack,
    split: Split,
    *,
    run: Run,
    compute: Compute,
    overwrite: bool = False,
    stop: StopRequest | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Checkpoint:
    """Train, or go on with a training that was stopped, and return the finished checkpoint.

    A finished run is only read, unless ``overwrite`` trains it anew. ``on_epoch`` is called with
    the record of each epoch once all of it is saved; what it raises leaves the run unfinished.

    Raises:
        StoppedError: ``stop`` was set; everything is saved and the same call goes on.
        RunError: ``run`` holds a training with other settings, or the loss is not finite.
    """
    asked = what_is_asked(config, pack, split)
    # Whatever can be refused is refused before the folder is made.
    run.check_ours()
    if not overwrite:
        run.check_same(asked)
        if run.is_finished():
            return load_checkpoint(run.best)
    training = set_up(resolve(config), pack, split, run=run, compute=compute)
    with run.held():
        if overwrite or not run.is_there():
            run.start(asked, {"provenance": training.record})
        elif run.last.exists():
            resume(training)
        while not _is_over(training):
            _train_epoch(training, stop)
            _close_epoch(training)
            if on_epoch:
                on_epoch(dict(training.place.history[-1]))
        checkpoint = _finish(training)
        best = {"epoch": training.place.best_epoch, **checkpoint.metrics}
        run.write("finished", asked, {"provenance": training.record, "best": best})
        return checkpoint


def _is_over(training: Training) -> bool:
    place, config = training.place, training.config
    waited = place.epoch - place.best_epoch
    return place.epoch >= config.epochs or (place.epoch > 0 and waited >= config.patience)


def _train_epoch(training: Training, stop: StopRequest | None) -> None:
    """Do the steps that are left of the present epoch."""
    place, config = training.place, training.config
    order = np.random.default_rng([config.seed, place.epoch]).permutation(training.rows["train"])
    loss_sum = torch.zeros((), device=training.compute.device)
    loss_sum += place.loss_sum
    training.classifier.train()
    saved = time.monotonic()
    started = saved - place.seconds
    what = f"epoch {place.epoch + 1}/{config.epochs}"
    with progress(training.steps_an_epoch * config.batch_size, what=what) as bar:
        bar.update(place.step * config.batch_size)
        while place.step < training.steps_an_epoch:
            rows = order[place.step * config.batch_size : (place.step + 1) * config.batch_size]
            loss_sum += _step(training, rows)
            place.step += 1
            bar.update(len(rows))
            now = time.monotonic()
            if stop or now - saved > SECONDS_BETWEEN_SAVES:
                place.loss_sum, place.seconds, saved = float(loss_sum), now - started, now
                save_state(training)
            if stop:
                raise StoppedError(
                    f"Stopped by {stop.signal_name} in {what}, saved in {training.run.folder}; "
                    "the same command goes on"
                )
    place.loss_sum, place.seconds = float(loss_sum), time.monotonic() - started


def _step(training: Training, rows: NDArray[np.int64]) -> Tensor:
    """Do one step on the patches ``rows``; return its loss, detached."""
    config, place, compute = training.config, training.place, training.compute
    _set_rate(training)
    # Dropout draws from the global generators, augmentation from its own.
    draw = int(np.random.default_rng([config.seed, place.epoch, place.step]).integers(2**62))
    torch.manual_seed(draw)
    patches = torch.from_numpy(training.pack.patches[rows]).to(compute.device)  # (n, H, W, 3)
    truth = training.pack.index["label"].to_numpy()[rows].astype(np.int64)
    labels = torch.from_numpy(truth).to(compute.device)
    if config.augment == "light":
        patches = random_dihedral(patches, generator=torch.Generator().manual_seed(draw))
    with compute.autocast():
        logits = training.classifier(patches)
        loss = F.cross_entropy(logits.float(), labels, weight=training.class_weight)
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(training.classifier.parameters(), _CLIP_NORM)
    training.optimizer.step()
    return loss.detach()


def _set_rate(training: Training) -> None:
    """Set the learning rate of the present step: linear warm-up, then half a cosine."""
    place, config = training.place, training.config
    total = config.epochs * training.steps_an_epoch
    share = rate_share(place.epoch * training.steps_an_epoch + place.step, total=total)
    for group in training.optimizer.param_groups:
        group.setdefault("peak", group["lr"])
        group["lr"] = group["peak"] * share


def rate_share(step: int, *, total: int) -> float:
    """Return the share of the peak learning rate at ``step`` of ``total``."""
    warm_up = max(1, round(_WARM_UP_SHARE * total))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, total - warm_up)
    return _LAST_RATE_SHARE + (1 - _LAST_RATE_SHARE) * (1 + math.cos(math.pi * done)) / 2


def _close_epoch(training: Training) -> None:
    """Look at the val patients, keep the weights if they are the best, and save the state."""
    place, run = training.place, training.run
    loss = place.loss_sum / training.steps_an_epoch
    if not math.isfinite(loss):
        kept = f"the best so far is {run.best}" if place.best_epoch else "nothing is kept"
        raise RunError(
            f"the loss is not finite in epoch {place.epoch + 1} ({kept}); "
            "lower --learning-rate or use --precision fp32, with another --out"
        )
    logit, label = _val_logits(training)
    probability = idc_probability(logit, temperature=1.0)
    place.epoch += 1
    seen = training.steps_an_epoch * training.config.batch_size
    epoch = {
        "epoch": place.epoch,
        "train_loss": loss,
        "val_loss": float(F.cross_entropy(torch.from_numpy(logit), torch.from_numpy(label))),
        "val_auc": metrics.auc(label, probability),
        "val_average_precision": metrics.average_precision(label, probability),
        "learning_rate": training.optimizer.param_groups[0]["lr"],
        "patches_per_second": seen / place.seconds,
    }
    place.history.append(epoch)
    is_best = epoch["val_average_precision"] > place.best_ap
    if is_best:
        place.best_ap, place.best_epoch = epoch["val_average_precision"], place.epoch
        save_checkpoint(run.best, as_checkpoint(training))
    place.step, place.loss_sum, place.seconds = 0, 0.0, 0.0
    save_state(training)
    run.write_history(place.history)
    logger.info(
        "epoch %d/%d: train loss %.4f, val loss %.4f, val AUC %.4f, val AP %.4f%s, %.0f patches/s",
        place.epoch,
        training.config.epochs,
        *(epoch[key] for key in ("train_loss", "val_loss", "val_auc", "val_average_precision")),
        " (best)" if is_best else "",
        epoch["patches_per_second"],
    )


def _val_logits(training: Training) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rows = training.rows["val"]
    logit = predict_logits(
        training.classifier, training.pack, rows, compute=training.compute, batch_size=_EVAL_BATCH
    )
    return logit, training.pack.index["label"].to_numpy()[rows].astype(np.int64)


def _finish(training: Training) -> Checkpoint:
    """Calibrate the best weights on the val patients and write them as the run's result."""
    best = load_checkpoint(training.run.best)
    network = training.classifier.network
    network.load_state_dict(dict(best.state))
    if not best.metrics:  # else a kill came between this function and the end of the run
        # Class weights have shifted the odds of IDC by their ratio; undo that where it shows in
        # every logit alike, so that the probabilities are those of the data.
        shift = torch.log(training.class_weight[IDC] / training.class_weight[1 - IDC])
        with torch.no_grad():
            training.classifier.head.bias[IDC] -= shift
    logit, label = _val_logits(training)
    temperature = fit_temperature(logit, label)
    probability = idc_probability(logit, temperature=temperature)
    threshold = best_f1_threshold(label, probability)
    found = metrics.all_metrics(label, probability, threshold=threshold)
    result = as_checkpoint(
        training,
        temperature=temperature,
        threshold=threshold,
        found={"epoch": training.place.best_epoch, "val": found},
    )
    save_checkpoint(training.run.best, result)
    return load_checkpoint(training.run.best)
