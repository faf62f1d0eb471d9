"""Look at the val patients: after each epoch, and to calibrate what a training ends with."""

import logging
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_idc.core.constants import IDC
from wsi_idc.core.errors import CheckpointError, RunError
from wsi_idc.data.pack import Pack
from wsi_idc.inference.calibration import calibrate, idc_probability
from wsi_idc.inference.predict import predict_logits
from wsi_idc.metrics import classification as metrics
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_idc.models.serialization import load_state
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.distributed import World
from wsi_idc.training.config import CALIBRATION, TrainConfig
from wsi_idc.training.resume import to_checkpoint
from wsi_idc.training.runs import Run
from wsi_idc.training.setup import labelled_rows
from wsi_idc.training.state import Training

logger = logging.getLogger(__name__)

_BATCH = 256


def val_logits(training: Training) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return logits and labels of all val patches; the processes share the work."""
    rows, world = training.rows["val"], training.world
    world.copy_from_writer(training.judged.network)
    try:
        part = predict_logits(
            [training.judged],
            training.pack,
            rows[world.part(len(rows))],
            device_config=training.compute,
            batch_size=min(_BATCH, 2 * training.micro_batch),
        )
    except CheckpointError:  # logits that are not finite
        raise divergence_error(training) from None
    logit = np.concatenate(world.gather(part[:, 0]))
    return logit, training.pack.index["label"].to_numpy()[rows].astype(np.int64)


def divergence_error(training: Training) -> RunError:
    """Return the error of a loss or logits that are not finite."""
    place, run = training.place, training.run
    kept = f"the best so far is {run.best}" if place.best_epoch else "no epoch is kept"
    return RunError(
        f"the loss is not finite in epoch {place.epoch + 1} ({kept}); "
        "lower --learning-rate or use --precision fp32, with another --out"
    )


def calibrate_and_save(training: Training) -> Checkpoint:
    """Calibrate the best weights on the val patients and write them as the run's result."""
    world, run = training.world, training.run
    world.wait()
    best = load_checkpoint(run.best)
    world.wait()
    judged = training.judged
    load_state(judged.network, best.state)
    if not best.metrics:  # else a kill came between this function and the end of the run
        # What evens out the classes shifts the odds of IDC; undo that where it shows in every
        # logit alike, so that the probabilities are those of the data.
        with torch.no_grad():
            judged.head.bias[IDC] -= training.odds_shift
    logit, _ = val_logits(training)
    if world.is_writer:
        uncalibrated = replace(
            to_checkpoint(training), metrics={"epoch": training.place.best_epoch}
        )
        config, rows = training.config, training.rows["val"]
        save_checkpoint(run.best, _calibrated(uncalibrated, logit, training.pack, rows, config))
    world.wait()
    return load_checkpoint(run.best)


def read_or_recalibrate(
    config: TrainConfig, pack: Pack, run: Run, *, compute: DeviceConfig, world: World
) -> Checkpoint:
    """Return the checkpoint of a finished run, calibrated as wanted."""
    checkpoint = load_checkpoint(run.best)
    wanted = {name: getattr(config, name) for name in CALIBRATION}
    is_as_wanted = all(checkpoint.config.get(name) == wanted[name] for name in CALIBRATION)
    world.wait()
    if checkpoint.smoothing is not None and is_as_wanted:
        return checkpoint
    logger.info("trained already; calibrating it anew on val")
    if world.is_writer:
        with run.held():
            anew = recalibrated(checkpoint, config, pack, compute=compute)
            save_checkpoint(run.best, anew)
            run.update_best_metrics(anew.metrics)
    world.wait()
    return load_checkpoint(run.best)


def recalibrated(
    checkpoint: Checkpoint, config: TrainConfig, pack: Pack, *, compute: DeviceConfig
) -> Checkpoint:
    """Return a finished checkpoint as if it had ended with this configuration's calibration."""
    rows = labelled_rows(pack, checkpoint.patients("val"))
    logit = predict_logits([checkpoint.build()], pack, rows, device_config=compute)[:, 0]
    wanted = {name: getattr(config, name) for name in CALIBRATION}
    anew = replace(checkpoint, config={**checkpoint.config, **wanted})
    return _calibrated(anew, logit, pack, rows, config)


def _calibrated(
    checkpoint: Checkpoint,
    logit: NDArray[np.float32],
    pack: Pack,
    rows: NDArray[np.int64],
    config: TrainConfig,
) -> Checkpoint:
    """Return the checkpoint with what is set on val patches ``rows``, and its metrics there."""
    label = pack.index["label"].to_numpy()[rows].astype(np.int64)
    found = calibrate(
        logit,
        label,
        pack.index["patient"].to_numpy()[rows],
        pack.cells()[rows],
        patch_um=pack.info.patch_px * pack.info.mpp,
        threshold_by=config.threshold_by,
        target_sensitivity=config.target_sensitivity,
    )
    probability = idc_probability(logit, temperature=found.temperature)
    of_val = metrics.all_metrics(label, probability, threshold=found.threshold)
    before = metrics.ece(label, idc_probability(logit, temperature=1.0))
    return replace(
        checkpoint,
        **vars(found),
        metrics={
            **checkpoint.metrics,
            "val": metrics.or_none({**of_val, "ece_uncalibrated": before}),
        },
    )
