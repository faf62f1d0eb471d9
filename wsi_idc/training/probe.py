"""Linear probe: logistic regression on the features of a frozen network."""

import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from wsi_idc.core.constants import IDC, PREDICT_BATCH_SIZE
from wsi_idc.core.errors import RunError
from wsi_idc.core.text import count
from wsi_idc.inference.features import FeatureBatch, cached_features, num_features
from wsi_idc.inference.novelty import fit_to_statistics, sample_rows
from wsi_idc.metrics import classification
from wsi_idc.models.cam_layers import novelty_layer
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.novelty import NoveltyModel
from wsi_idc.models.pretrained import check_storable, encoder_source
from wsi_idc.runtime.resources import available_memory
from wsi_idc.runtime.signals import StopRequest, raise_if_stopped
from wsi_idc.training import validation
from wsi_idc.training.config import monitored_value
from wsi_idc.training.loss import inverse_frequency
from wsi_idc.training.state import Training

logger = logging.getLogger(__name__)

# Values of C; a large C is a weak penalty. The fits end when the AUC has fallen twice in a row.
PENALTIES = tuple(10.0**exponent for exponent in range(-6, 3))
_MAX_FALLS = 2
_MAX_ITERATIONS = 500
_ROWS_PER_BLOCK = 4096
_GIB = 2**30


class Probe(NamedTuple):
    """A fitted linear layer. The log odds of IDC are ``features @ weight + bias``.

    Attributes:
        weight: Weight of each feature, shape (D,), float32.
        bias: Bias.
        penalty: Value of C.
        auc: Area under the ROC curve of the val patches.
        train_loss: Mean cross-entropy of the train patches, with class weights.
    """

    weight: NDArray[np.float32]
    bias: float
    penalty: float
    auc: float
    train_loss: float


def fit_probe(
    training: Training,
    settings: dict[str, Any],
    *,
    stop: StopRequest | None,
    store_encoder: bool,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> Checkpoint:
    """Fit the last layer of a frozen network, and return the final checkpoint.

    The features are in a file beside the pack, so other trainings with the same encoder read them.

    Args:
        training: Training that has not begun.
        settings: Settings for run.json.
        stop: Request of the user to stop; the features so far are kept.
        store_encoder: Whether the checkpoint contains the weights of the encoder. It always does if
            they are random, or those of another checkpoint.
        on_epoch: Function that gets the record of the fit.

    Raises:
        CheckpointError: The network has no features, or the licence of its weights does not permit
            ``store_encoder``.
        RunError: The features do not fit into the memory.
        StoppedError: ``stop`` was set. The same call continues.
    """
    run, pack, classifier, rows = training.run, training.pack, training.classifier, training.rows
    # Raise errors before the old files are deleted.
    _check_memory(training, num_features(classifier, pack.info.patch_px))
    state, weights = classifier.network.state_dict(), training.config.weights
    source = encoder_source(classifier.arch, weights, state)
    if store_encoder and source is not None:
        check_storable(source, classifier.arch.name)
        source = None
    run.start(settings, {"provenance": training.provenance})
    started = time.monotonic()
    train, val, novelty = _features(training, stop)
    label = pack.index["label"].to_numpy().astype(np.int64)
    labels = {role: label[rows[role]] for role in ("train", "val")}
    # Here, "oversample" is the same as "class-weights".
    is_balanced = training.config.imbalance != "none"
    class_weight = inverse_frequency(labels["train"]) if is_balanced else np.ones(2)
    # Each patch has the same weight for any number of views.
    views = training.config.views
    train_label = np.tile(labels["train"], views)
    options: Any = {"class_weight": class_weight / views, "stop": stop}
    probe = choose_probe(train, train_label, val, labels["val"], **options)
    set_head(classifier, probe)
    logit = logits_of(val, probe)
    seconds = time.monotonic() - started
    _finish_epoch(training, probe, logit, labels["val"], seconds=seconds)
    if on_epoch is not None:
        on_epoch(dict(training.state.history[-1]))
    # As after a usual training, the probabilities fit the frequencies of the classes.
    shift = training.log_odds_shift
    with torch.no_grad():
        classifier.head.bias[IDC] -= shift
    logit[:, IDC] -= shift
    checkpoint = validation.calibrated_checkpoint(training, logit)
    checkpoint = replace(
        checkpoint,
        metrics={**checkpoint.metrics, "penalty": probe.penalty},
        novelty=novelty,
        encoder=source,
    )
    save_checkpoint(run.best, checkpoint)
    if source is not None:
        logger.info("%s contains only the head, and needs the weights: %s", run.best, source)
    details = {"provenance": training.provenance, "best": checkpoint.metrics}
    run.write("finished", settings, details)
    return load_checkpoint(run.best)


def _check_memory(training: Training, size: int) -> None:
    """Raise RunError if the features of the train and val patches do not fit into the memory.

    ``size`` is the number of features of a patch.
    """
    num_train, num_val = (len(training.rows[role]) for role in ("train", "val"))
    # Statistics of the novelty model: about two values per feature, only of the first view.
    views = training.config.views
    values = size * (views * num_train + 3 * (num_train + num_val))
    needed, available = values * np.dtype(np.float32).itemsize, available_memory()
    if available is not None and needed > available:
        raise RunError(
            f"the features of {num_train} train patches in {count(views, 'view')} need "
            f"{needed / _GIB:.1f} GiB of memory, but {available / _GIB:.1f} GiB are free; give "
            "smaller --views, a --split with fewer train patients, or another --model"
        )


def _features(
    training: Training, stop: StopRequest | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NoveltyModel | None]:
    """Compute or read the features.

    Returns:
        Features of the train patches, shape (views * n, D): all patches in view 1, then in view 2.
        Features of the val patches, shape (m, D).
        Novelty model of the patches in view 1.
    """
    rows, num = training.rows, len(training.rows["train"])
    features_of = partial(
        cached_features,
        training.classifier,
        training.pack,
        folder=_feature_folder(training),
        device_config=training.device_config,
        batch_size=min(PREDICT_BATCH_SIZE, 2 * training.micro_batch),
        stop=stop,
    )
    computed = features_of(np.concatenate([rows["train"], rows["val"]]))
    train, val = np.split(computed.features, [num])
    novelty = _fit_novelty(training, computed)
    if training.config.views > 1:
        all_views = np.empty((training.config.views * num, train.shape[1]), np.float32)
        all_views[:num] = train
        for view in range(1, training.config.views):
            all_views[view * num :][:num] = features_of(rows["train"], view=view).features
        train = all_views
    return train, val, novelty


def _feature_folder(training: Training) -> Path:
    """Return the folder of the cached features: beside the pack, or in the run."""
    beside = training.pack.path.with_suffix(".features")
    written = beside if beside.exists() else beside.parent
    if os.access(written, os.W_OK):
        return beside
    logger.info("%s cannot be written to, so the features are stored in the run", written)
    return training.run.folder / "features"


def choose_probe(
    features: NDArray[np.float32],
    label: NDArray[np.int64],
    val_features: NDArray[np.float32],
    val_label: NDArray[np.int64],
    *,
    class_weight: NDArray[np.floating],
    stop: StopRequest | None = None,
) -> Probe:
    """Fit logistic regressions with several penalties; return the one with the best AUC on val.

    Args:
        features: Features of the train patches, shape (n, D). They are standardized in place,
            because a copy may not fit into the memory.
        label: Labels of the train patches, shape (n,).
        val_features: Features of the val patches, shape (m, D).
        val_label: Labels of the val patches, shape (m,).
        class_weight: Weight of each class in the loss, shape (2,).
        stop: Request to stop between two fits.
    """
    # With standardized features, the penalty is equal for all features.
    mean, std = _moments(features)
    std = np.where(std > 0, std, 1.0)
    features -= mean.astype(np.float32)
    features /= std.astype(np.float32)
    model = LogisticRegression(
        class_weight=dict(enumerate(class_weight.tolist())),
        max_iter=_MAX_ITERATIONS,
        warm_start=True,
    )
    best, num_falls, last_auc = None, 0, 0.0
    for penalty in PENALTIES:
        raise_if_stopped(stop, " before the last fit; the features are kept")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # logged below
            model.set_params(C=penalty).fit(features, label)
        weight = model.coef_[0].astype(np.float64) / std
        bias = float(model.intercept_[0] - weight @ mean)
        auc = classification.auc(val_label, val_features @ weight.astype(np.float32))
        probability = model.predict_proba(features)[:, 1]
        loss = log_loss(label, probability, sample_weight=class_weight[label])
        probe = Probe(weight.astype(np.float32), bias, penalty, auc, float(loss))
        ends = "" if model.n_iter_[0] < _MAX_ITERATIONS else ", not converged"
        logger.info("C %g: train loss %.4f, val AUC %.4f%s", penalty, loss, auc, ends)
        best = probe if best is None or auc > best.auc else best
        num_falls = num_falls + 1 if auc < last_auc else 0
        last_auc = auc
        if num_falls == _MAX_FALLS:
            break
    assert best is not None
    return best


def _moments(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each feature, shape (D,), without a large copy."""
    mean = features.mean(axis=0, dtype=np.float64)
    squares = np.zeros_like(mean)
    for start in range(0, len(features), _ROWS_PER_BLOCK):
        squares += np.square(features[start:][:_ROWS_PER_BLOCK] - mean).sum(axis=0)
    return mean, np.sqrt(squares / len(features))


def logits_of(features: NDArray[np.float32], probe: Probe) -> NDArray[np.float32]:
    """Return the logits of both classes, shape (n, 2); they are opposite numbers."""
    half = (features @ probe.weight + np.float32(probe.bias)) / 2
    return np.stack([-half, half], axis=1)


@torch.no_grad()
def set_head(classifier: PatchClassifier, probe: Probe) -> None:
    """Write a probe into the last layer; the logits of the two classes are opposite numbers."""
    head = classifier.head
    half = torch.from_numpy(probe.weight / 2).to(head.weight).reshape(head.weight[0].shape)
    head.weight.copy_(torch.stack([-half, half]))
    head.bias.copy_(torch.tensor([-probe.bias / 2, probe.bias / 2]))


def _finish_epoch(
    training: Training,
    probe: Probe,
    logit: NDArray[np.float32],
    label: NDArray[np.int64],
    *,
    seconds: float,
) -> None:
    """Record the fit as the only epoch of the training, and save its weights."""
    state, num_patches = training.state, sum(map(len, training.rows.values()))
    record = {
        "epoch": 1,
        "train_loss": probe.train_loss,
        **validation.val_metrics(logit, label, log_odds_shift=training.log_odds_shift),
        "penalty": probe.penalty,
        "patches_per_second": num_patches / seconds,
    }
    state.epoch, state.history = 1, [record]
    state.best, state.best_epoch = monitored_value(record, training.config.monitor), 1
    training.run.write_history(state.history)


def _fit_novelty(training: Training, computed: FeatureBatch) -> NoveltyModel | None:
    """Fit the novelty model; ``computed`` has the train patches first, then the val patches."""
    arch, config, rows = training.classifier.arch, training.config, training.rows
    layer = novelty_layer(arch, config.input_size or training.pack.info.patch_px)
    assert computed.statistics is not None
    train, val = np.split(computed.statistics, [len(rows["train"])])
    sampled = sample_rows(rows["val"])
    return fit_to_statistics(
        layer,
        train[np.searchsorted(rows["train"], sample_rows(rows["train"]))],
        val[np.searchsorted(rows["val"], sampled)],
        training.pack.patient_of[sampled],
    )
