"""Fit of the novelty model of a classifier to train and val patches."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from wsi_idc.core.constants import PATCH_PX
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predict import predict
from wsi_idc.models.cam_layers import novelty_layer
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.novelty import NoveltyModel, recorded_statistics
from wsi_idc.runtime.device import DeviceConfig

logger = logging.getLogger(__name__)

# Maximum number of patches of a role. More patches change the model little, and take time.
MAX_PATCHES = 10_000
_NUM_QUANTILES = 1001
# Limits for channels that hardly vary on train, so that they do not dominate the distance.
_MIN_STD = 1e-3  # minimum standard deviation, as a fraction of the largest standard deviation
_RIDGE = 1e-4  # added to each variance after the statistics are scaled to variance 1
_MIN_PATCHES = 2  # a covariance needs two patches


def fit_novelty(
    classifier: PatchClassifier,
    pack: Pack,
    train: NDArray[np.int64],
    val: NDArray[np.int64],
    *,
    device_config: DeviceConfig,
) -> NoveltyModel | None:
    """Fit the novelty model of a classifier.

    At most ``MAX_PATCHES`` train patches and ``MAX_PATCHES`` val patches are used.

    Patches are left out if their feature map has a value that is not finite, such as a value above
    65504 in fp16. If too few patches remain, the result is ``None``.

    A network can have almost as many channels as there are patches. Therefore the covariance of the
    train patches is shrunk (Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4).

    Args:
        classifier: Trained classifier.
        pack: Pack that contains the patches.
        train: Indices of the train patches in the pack, shape (n,).
        val: Indices of the val patches in the pack, shape (m,).
        device_config: Device and precision.
    """
    layer = novelty_layer(classifier.arch, classifier.input_px or PATCH_PX)
    train, val = sample_rows(train), sample_rows(val)
    statistics, values = (
        _statistics(classifier, layer, pack, rows, device_config) for rows in (train, val)
    )
    return fit_to_statistics(layer, statistics, values, pack.patient_of[val])


def fit_to_statistics(
    layer: str,
    train: NDArray[np.floating],
    val: NDArray[np.floating],
    patient: NDArray[np.str_],
) -> NoveltyModel | None:
    """Fit a novelty model to the statistics of patches; see ``fit_novelty``.

    Args:
        layer: Name of the layer whose feature map has these statistics.
        train: Statistics of the train patches, shape (n, d).
        val: Statistics of the val patches, shape (m, d).
        patient: Patient of each val patch, shape (m,).
    """
    train, _ = _finite(train)
    val, is_finite = _finite(val)
    if min(len(train), len(val)) < _MIN_PATCHES:
        logger.warning("the checkpoint gets no novelty model; train with --precision fp32")
        return None
    mean, std = train.mean(axis=0), train.std(axis=0)
    std = np.maximum(std, _MIN_STD * std.max() or 1.0)
    covariance, _ = ledoit_wolf((train - mean) / std, assume_centered=True)
    precision = np.linalg.inv(covariance + _RIDGE * np.eye(len(mean)))
    whitening = np.linalg.cholesky(precision) / std[:, None]
    model = NoveltyModel(layer, _tensor(mean), _tensor(whitening), torch.zeros(2), 0.0, 0.0)
    distance = model.distance(_tensor(val)).numpy()
    quantiles = _tensor(np.quantile(distance, np.linspace(0, 1, _NUM_QUANTILES)))
    model = replace(model, quantiles=quantiles)
    novelty, patient = model.novelty(distance), patient[is_finite]
    means = [novelty[patient == each].mean() for each in np.unique(patient)]
    return replace(model, patient_mean=float(np.mean(means)), patient_std=float(np.std(means)))


def sample_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return at most ``MAX_PATCHES`` of ``rows``, chosen at random with a constant seed."""
    if len(rows) <= MAX_PATCHES:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, MAX_PATCHES, replace=False))


def _statistics(
    classifier: PatchClassifier,
    layer: str,
    pack: Pack,
    rows: NDArray[np.int64],
    device_config: DeviceConfig,
) -> NDArray[np.float32]:
    """Compute the statistics of patches, shape (n, d)."""
    parts = []
    # A compiled network does not call the hook that records the statistics.
    options: Any = {"device_config": replace(device_config, compiled=False)}
    options["num_in_flight"] = 1  # the hook needs one batch after the other
    with recorded_statistics(classifier.network, layer) as recorded:
        for prediction in predict([classifier], pack, rows, **options):
            # Remove the padding of the batch. Element 1 may be the next batch.
            parts.append(recorded.pop(0)[: len(prediction.logit)].cpu().numpy())
    return np.concatenate(parts)


def _finite(statistics: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Leave out patches with values that are not finite.

    Returns:
        Statistics of the remaining patches, shape (n, d).
        For each patch, whether it remains.
    """
    is_finite = np.isfinite(statistics).all(axis=1)
    if not is_finite.all():
        num_all, num = len(statistics), len(statistics) - int(is_finite.sum())
        logger.warning("novelty: %d of %d patches have values that are not finite", num, num_all)
    return statistics[is_finite].astype(np.float64), is_finite


def _tensor(values: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
