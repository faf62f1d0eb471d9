"""Measure whether a CAM marks the part of a patch that the classifier uses."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.nn import functional as F

from wsi_idc.core.constants import IDC, PREDICT_BATCH_SIZE
from wsi_idc.core.errors import DataError
from wsi_idc.core.progress import progress
from wsi_idc.data.augmentation import INVERSE_DIHEDRAL, NUM_DIHEDRAL, dihedral
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predict import RawPrediction
from wsi_idc.inference.predictor import Predictor
from wsi_idc.metrics.classification import nan_to_none, records
from wsi_idc.models.cam import CamSpec
from wsi_idc.runtime.device import DeviceConfig

FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)
NUM_PATCHES = 500  # per class
_REPORTED = 0.2  # hidden fraction of the patch for the value ``fall``
Patches = NDArray[np.uint8]
PredictFn = Callable[[Patches], RawPrediction]


@dataclass(frozen=True)
class CamQuality:
    """Quality of the CAMs of a predictor.

    Attributes:
        method: Method and layer of the CAM.
        grid: Rows and columns of a CAM.
        num_idc, num_other: Number of measured patches of each class.
        fall: Fall of the log odds of IDC if the 20 % of the px with the largest CAM are hidden,
            minus the fall if random 20 % of the px are hidden; mean over the IDC patches.
        area: The same difference of falls, averaged over all hidden fractions of ``curve``.
        other_brightness: Mean CAM of non-IDC patches divided by the mean CAM of IDC patches; NaN
            if there are no non-IDC patches.
        rim_excess: (o - i) / i, where o is the mean CAM of the outer cells of IDC patches, and i
            is the mean CAM of the inner cells; NaN if there are no inner cells.
        flip_stability: Mean correlation between the CAM of an IDC patch and the CAMs of its 7
            flipped or rotated copies. These CAMs are flipped or rotated back first.
        curve: One row per hidden fraction. Columns: ``fraction``; ``top``, mean fall of the log
            odds if the part with the largest CAM is hidden; ``random``, mean fall of the log odds
            if a random part is hidden.
    """

    method: str
    grid: tuple[int, int]
    num_idc: int
    num_other: int
    fall: float
    area: float
    other_brightness: float
    rim_excess: float
    flip_stability: float
    curve: pd.DataFrame

    def as_dict(self) -> dict[str, Any]:
        """Return all attributes as a dict for JSON. None replaces NaN."""
        values = asdict(self) | {"grid": list(self.grid), "curve": None}
        return {**nan_to_none(values), "curve": records(self.curve)}


def cam_quality(
    predictor: Predictor,
    pack: Pack,
    patients: list[str],
    *,
    device_config: DeviceConfig,
    batch_size: int = PREDICT_BATCH_SIZE,
    cam: CamSpec | None = None,
    num_patches: int = NUM_PATCHES,
    seed: int = 0,
) -> CamQuality:
    """Measure the CAMs of at most ``num_patches`` random patches of each class.

    To hide a px, the px gets the mean color of its patch. For a random part, random numbers replace
    the CAM. Samek et al. (2017, doi:10.1109/TNNLS.2016.2599820) also compare heat maps with random
    parts.

    Args:
        predictor: Predictor to measure; its test-time augmentation is not used. With several
            checkpoints, their mean CAM is measured.
        pack: Pack with the patches.
        patients: Patients from whose labelled patches the random patches are drawn.
        device_config: Device and precision.
        batch_size: Largest number of patches in a batch.
        cam: Method, layer and class of the CAM; None means the default CAM of ``wsi-idc map``.
        num_patches: Largest number of patches of each class.
        seed: Seed of the drawn patches and of the random parts.

    Raises:
        DataError: No patch of these patients has the label IDC.
    """
    cam, predictor = cam or CamSpec(), replace(predictor, tta=False)
    idc, other = _drawn_patches(pack, patients, num_patches, np.random.default_rng(seed))
    num_predictions = len(idc) * (NUM_DIHEDRAL + 2 * len(FRACTIONS)) + len(other)
    options: dict[str, Any] = {"device_config": device_config, "batch_size": batch_size}
    with (
        progress(num_predictions, what="measuring CAMs") as bar,
        predictor.batch_predictor(**options, cam=cam) as predict_batches,
    ):

        def predict(patches: Patches) -> RawPrediction:
            starts = range(0, len(patches), batch_size)
            batches = (patches[start : start + batch_size] for start in starts)
            return RawPrediction.concatenate(predict_batches(batches), bar)

        prediction = predict(idc)
        maps = _cams(prediction)
        noise = np.random.default_rng(seed).random(maps.shape, np.float32)
        curve = _falls(predict, idc, _log_odds(prediction), {"top": maps, "random": noise})
        stability = _flip_stability(predict, idc, maps)
        other_mean = _cams(predict(other)).mean() if len(other) else np.nan
    difference = (curve["top"] - curve["random"]).to_numpy()
    spec = cam.resolve(predictor.checkpoints[0].build())
    return CamQuality(
        method=f"{spec.method} at {spec.layer or 'the last feature map'}",
        grid=(maps.shape[1], maps.shape[2]),
        num_idc=len(idc),
        num_other=len(other),
        fall=float(difference[FRACTIONS.index(_REPORTED)]),
        area=float(difference.mean()),
        other_brightness=float(other_mean / maps.mean()) if maps.any() else np.nan,
        rim_excess=_rim_excess(maps),
        flip_stability=stability,
        curve=curve,
    )


def _drawn_patches(
    pack: Pack, patients: list[str], num_patches: int, rng: np.random.Generator
) -> tuple[Patches, Patches]:
    """Return random patches of IDC and of non-IDC, two arrays of shape (n, H, W, 3)."""
    label, members = pack.index["label"].to_numpy(), np.isin(pack.patient_of, patients)
    drawn = []
    for is_class in (label == IDC, (label >= 0) & (label != IDC)):
        rows = np.flatnonzero(members & is_class)
        rows = np.sort(rng.choice(rows, min(num_patches, len(rows)), replace=False))
        drawn.append(pack.read(rows))
    if not len(drawn[0]):
        raise DataError(
            f"{pack.path}: no patch of these patients has the label IDC, so CAMs cannot be "
            "measured; give other patients, or leave out --cam"
        )
    return drawn[0], drawn[1]


def _log_odds(prediction: RawPrediction) -> NDArray[np.float32]:
    """Return the log odds of IDC, shape (n,), averaged over the checkpoints."""
    return (prediction.logit[..., IDC] - prediction.logit[..., 1 - IDC]).mean(axis=1)


def _falls(
    predict: PredictFn,
    patches: Patches,
    log_odds: NDArray[np.float32],
    scores: Mapping[str, NDArray[np.float32]],
) -> pd.DataFrame:
    """Hide the px with the largest scores; return the mean falls of the log odds.

    ``log_odds`` has the log odds of the unchanged patches. ``scores`` has named arrays of shape
    (n, h, w). The result has one row per hidden fraction, and one column of falls per name.
    """
    num, side = len(patches), patches.shape[1]
    mean = patches.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8)
    ranks = {}
    for name, score in scores.items():
        grid = torch.from_numpy(score)[:, None].float()
        enlarged = F.interpolate(grid, size=(side, side), mode="bilinear")
        order = enlarged.flatten(1).argsort(dim=1, descending=True, stable=True)
        ranks[name] = order.argsort(dim=1).numpy().reshape(num, side, side, 1)
    rows = []
    for fraction in FRACTIONS:
        row = {"fraction": fraction}
        for name, rank in ranks.items():
            hidden = np.where(rank < round(fraction * side * side), mean, patches)
            row[name] = float((log_odds - _log_odds(predict(hidden))).mean())
        rows.append(row)
    return pd.DataFrame(rows)


def _flip_stability(predict: PredictFn, patches: Patches, maps: NDArray[np.float32]) -> float:
    """Return the mean correlation between ``maps`` and the CAMs of flipped, rotated patches."""
    images = torch.from_numpy(patches).permute(0, 3, 1, 2)
    correlations = []
    for view in range(1, NUM_DIHEDRAL):
        turned = _turn(images, view).permute(0, 2, 3, 1).contiguous().numpy()
        back = _turn(torch.from_numpy(_cams(predict(turned)))[:, None], INVERSE_DIHEDRAL[view])
        correlations.append(_correlation(maps, back[:, 0].numpy()))
    # The correlation of a constant CAM is NaN.
    return float(np.nanmean(correlations)) if np.isfinite(correlations).any() else np.nan


def _turn(images: torch.Tensor, view: int) -> torch.Tensor:
    return dihedral(images, torch.full((len(images),), view))


def _cams(prediction: RawPrediction) -> NDArray[np.float32]:
    assert prediction.cam is not None
    return prediction.cam


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return Pearson's correlation of each pair of maps, shape (n,); NaN for a constant map."""
    a, b = (m.reshape(len(m), -1).astype(np.float64) for m in (first, second))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.full(len(a), np.nan), where=norm > 0)


def _rim_excess(maps: NDArray[np.float32]) -> float:
    inner = maps[:, 1:-1, 1:-1]
    if not inner.any():
        return np.nan
    num_outer = maps[0].size - inner[0].size
    outer_mean = (maps.sum() - inner.sum()) / (len(maps) * num_outer)
    return float(outer_mean / inner.mean() - 1)


def cam_quality_chart(quality: CamQuality) -> Figure:
    """Draw the mean fall of the log odds (y axis) for each hidden fraction of a patch (x axis)."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    ax = figure.subplots()
    percent = 100 * quality.curve["fraction"]
    ax.plot(percent, quality.curve["top"], "o-", label="largest CAM")
    ax.plot(percent, quality.curve["random"], "s--", color="0.5", label="random parts")
    ax.axhline(0, color="0.8", linewidth=1)
    ax.set(xlabel="Hidden part of the patch (%)", ylabel="Mean fall of the log odds of IDC")
    ax.set_title(f"{quality.num_idc} IDC patches, {quality.method}", fontsize="medium")
    ax.legend(frameon=False)
    return figure
