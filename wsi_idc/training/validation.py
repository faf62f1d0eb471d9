"""Validation: predict the val patients, and calibrate the final checkpoint."""

import logging
import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from wsi_idc.core.constants import IDC
from wsi_idc.core.errors import CheckpointError, RunError
from wsi_idc.data.pack import Pack
from wsi_idc.inference.calibration import (
    best_f1_threshold,
    best_youden_threshold,
    calibrate,
)
from wsi_idc.inference.novelty import fit_novelty
from wsi_idc.inference.predict import predict_logits
from wsi_idc.inference.probability import idc_probability
from wsi_idc.metrics import classification as metrics
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, load_state, save_checkpoint
from wsi_idc.models.pretrained import check_storable
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.distributed import World
from wsi_idc.training.config import CALIBRATION_FIELDS, TrainConfig
from wsi_idc.training.runs import Run
from wsi_idc.training.setup import labeled_rows
from wsi_idc.training.state import Training, to_checkpoint

logger = logging.getLogger(__name__)


def predict_val(training: Training) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Predict all val patches; each process of the training predicts a part of the patches.

    Returns:
        Logits of all val patches, shape (N, num_classes).
        Labels of all val patches, shape (N,).
    """
    rows, world, pack = training.rows["val"], training.world, training.pack
    world.broadcast_module(training.ema_model.network)
    own_rows, batch_size = rows[world.shard(len(rows))], min(256, 2 * training.micro_batch)
    options = {"device_config": training.device_config, "batch_size": batch_size}
    try:
        part = predict_logits(training.ema_model, pack, own_rows, **options)
    except CheckpointError:  # raised if a logit is not finite
        raise divergence_error(training) from None
    logit = np.concatenate(world.gather(part))
    return logit, pack.index["label"].to_numpy()[rows].astype(np.int64)


def divergence_error(training: Training) -> RunError:
    """Return the error to raise if the loss or a logit is not finite."""
    state, run = training.state, training.run
    best = f"the best model is in {run.best}" if state.best_epoch else "no model is saved"
    return RunError(
        f"the loss is not finite in epoch {state.epoch + 1} ({best}); "
        "give a lower --learning-rate or --precision fp32, and another --out"
    )


def calibrate_and_save(training: Training) -> Checkpoint:
    """Calibrate the best weights on the val patients and save the final checkpoint."""
    world, run, model = training.world, training.run, training.ema_model
    world.barrier()
    best = load_checkpoint(run.best)
    world.barrier()
    load_state(model.network, best.state)
    if not best.metrics:  # if there are metrics, the bias is already corrected
        # Class weights and oversampling shift the log odds of IDC by a constant. Subtract the
        # constant from the bias of the head, so that the probabilities fit the class frequencies.
        with torch.no_grad():
            model.head.bias[IDC] -= training.log_odds_shift
    logit, _ = predict_val(training)
    if world.is_main:
        checkpoint = calibrated_checkpoint(training, logit)
        checkpoint = _with_novelty(checkpoint, training.pack, training.device_config)
        save_checkpoint(run.best, checkpoint)
    world.barrier()
    return load_checkpoint(run.best)


def calibrated_checkpoint(training: Training, logit: NDArray[np.float32]) -> Checkpoint:
    """Return a checkpoint of the current weights, calibrated to the logits of the val patches."""
    checkpoint = replace(to_checkpoint(training), metrics={"epoch": training.state.best_epoch})
    return _calibrate(checkpoint, logit, training.pack)


def val_metrics(
    logit: NDArray[np.float32], label: NDArray[np.int64], *, log_odds_shift: float
) -> dict[str, float]:
    """Return the metrics of the val patches for the record of an epoch.

    Args:
        logit: Logits of the val patches, shape (N, num_classes).
        label: Labels of the val patches, shape (N,).
        log_odds_shift: Value that the training added to the log odds of IDC; ``val_loss`` is
            without this value.
    """
    probability = idc_probability(logit, temperature=1.0)
    val = metrics.all_metrics(label, probability, threshold=0.5)
    del val["prevalence"]
    # The final checkpoint has no ``log_odds_shift``, and its threshold is chosen on val.
    shifted = logit.copy()
    shifted[:, IDC] -= log_odds_shift
    largest = {}
    for name, choose in (("f1", best_f1_threshold), ("balanced_accuracy", best_youden_threshold)):
        threshold = choose(label, probability)
        counts = vars(metrics.confusion(label, probability, threshold=threshold)).values()
        largest[f"val_largest_{name}"] = float(metrics.threshold_metrics(*counts)[name])
        largest[f"val_largest_{name}_threshold"] = threshold
    return {
        "val_loss": float(F.cross_entropy(torch.from_numpy(shifted), torch.from_numpy(label))),
        **{f"val_{name}": value for name, value in val.items() if not math.isnan(value)},
        **largest,
    }


def load_or_recalibrate(
    config: TrainConfig,
    pack: Pack,
    run: Run,
    *,
    device_config: DeviceConfig,
    world: World,
    store_encoder: bool = False,
) -> Checkpoint:
    """Load the checkpoint of a finished run; calibrate it again if calibration settings changed.

    With ``store_encoder``, the file then contains all weights.
    """
    checkpoint = load_checkpoint(run.best)
    if store_encoder and checkpoint.encoder is not None:
        check_storable(checkpoint.encoder, checkpoint.architecture)
        world.barrier()
        if world.is_main:
            with run.lock():
                save_checkpoint(run.best, replace(checkpoint, encoder=None))
        world.barrier()
        checkpoint = load_checkpoint(run.best)
    settings = {name: getattr(config, name) for name in CALIBRATION_FIELDS}
    is_current = all(checkpoint.config.get(name) == value for name, value in settings.items())
    world.barrier()
    if checkpoint.smoothing is not None and is_current:
        return checkpoint
    logger.info("the training is finished; calibrating the checkpoint again on val")
    if world.is_main:
        rows, model = labeled_rows(pack, checkpoint.patients("val")), checkpoint.build()
        with run.lock():
            logit = predict_logits(model, pack, rows, device_config=device_config)
            checkpoint = replace(checkpoint, config={**checkpoint.config, **settings})
            checkpoint = _calibrate(checkpoint, logit, pack)
            checkpoint = _with_novelty(checkpoint, pack, device_config)
            save_checkpoint(run.best, checkpoint)
            run.update_best_metrics(checkpoint.metrics)
    world.barrier()
    return load_checkpoint(run.best)


def _calibrate(checkpoint: Checkpoint, logit: NDArray[np.float32], pack: Pack) -> Checkpoint:
    """Return a copy of a checkpoint with its calibration and its metrics on the val patches."""
    rows = labeled_rows(pack, checkpoint.patients("val"))
    label = pack.index["label"].to_numpy()[rows].astype(np.int64)
    calibration = calibrate(
        logit,
        label,
        pack.index["slide"].to_numpy()[rows],
        pack.cells()[rows],
        patch_um=pack.info.patch_px * pack.info.mpp,
        **{name: checkpoint.config[name] for name in CALIBRATION_FIELDS},
    )
    probability = idc_probability(logit, temperature=calibration.temperature)
    val = {
        **metrics.all_metrics(label, probability, threshold=calibration.threshold),
        "ece_uncalibrated": metrics.ece(label, idc_probability(logit, temperature=1.0)),
    }
    return replace(
        checkpoint,
        **vars(calibration),
        metrics={**checkpoint.metrics, "val": metrics.nan_to_none(val)},
    )


def _with_novelty(checkpoint: Checkpoint, pack: Pack, device_config: DeviceConfig) -> Checkpoint:
    """Return the checkpoint with a novelty model; fit the model if the checkpoint has no model."""
    if checkpoint.novelty is not None:
        return checkpoint
    train, val = (labeled_rows(pack, checkpoint.patients(role)) for role in ("train", "val"))
    model = fit_novelty(checkpoint.build(), pack, train, val, device_config=device_config)
    return replace(checkpoint, novelty=model)
