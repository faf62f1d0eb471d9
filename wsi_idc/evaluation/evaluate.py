"""How well a method does on patients that its checkpoints have not seen."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.constants import NUM_RESAMPLES
from wsi_idc.core.errors import DataError
from wsi_idc.core.progress import progress
from wsi_idc.core.provenance import provenance
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.results import Evaluation, MetricSet
from wsi_idc.inference.predictor import Predictor
from wsi_idc.metrics import classification as measure
from wsi_idc.metrics.bootstrap import (
    interval,
    resample_patients,
    resampled_metrics,
    roc_and_pr_bands,
)
from wsi_idc.metrics.patients import DISTANCES, border_distances, patient_table, summary
from wsi_idc.runtime.device import DeviceConfig

# Bands are drawn, not quoted: fewer resamples do.
_RESAMPLES_OF_BANDS = 500


def choose_patients(
    method: Predictor, pack: Pack, split: str, *, allow_seen: bool = False
) -> list[str]:
    """Return the patients of the pack that a word stands for.

    Args:
        method: Its checkpoints know which patients they were trained on and chosen by.
        pack: The data.
        split: test, val or train of every checkpoint's split; unseen, in no one's train or val;
            or all.
        allow_seen: Let it be evaluated on patients that a checkpoint was trained on.

    Raises:
        DataError: There is none, or a checkpoint was trained on one of them.
    """
    here = set(pack.patients)
    if split == "all":
        chosen = here
    elif split == "unseen":
        chosen = here - method.patients("train", "val")
    else:
        chosen = here.intersection(*(one.patients(split) for one in method.checkpoints))
    if not chosen:
        whose = "the checkpoint's" if len(method.checkpoints) == 1 else "all checkpoints'"
        raise DataError(
            f"none of {whose} {split} patients is in {pack.path}; "
            "use --split unseen for data of your own"
        )
    seen = sorted(chosen & method.patients("train"))
    if seen and not allow_seen:
        raise DataError(
            f"the checkpoint was trained on {len(seen)} of these patients, {seen[0]} first: the "
            "figures would flatter it; use --split test, or --allow-seen to do it all the same"
        )
    return sorted(chosen)


def evaluate(
    method: Predictor,
    pack: Pack,
    patients: list[str],
    *,
    split: str,
    compute: DeviceConfig,
    batch_size: int,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Evaluation:
    """Predict every patch of ``patients`` and compare those of known label with their labels.

    Raises:
        CheckpointError: A checkpoint does not fit the data.
        DataError: No patch has a known label.
    """
    method.validate_input(pack)
    members = np.isin(pack.patient_of, patients)
    known = pack.index["label"].to_numpy() >= 0
    if not (members & known).any():
        raise DataError(f"{pack.path}: no patch of these patients has a known label")
    rows = np.flatnonzero(members)
    logit = _logits(method, pack, rows, compute=compute, batch_size=batch_size)
    everything = predictions_table(method, pack, rows, logit)
    is_known = known[rows]
    predictions = everything[is_known].reset_index(drop=True)
    label, names = predictions["label"].to_numpy(), predictions["patient"].to_numpy()
    predictions["border_distance"] = border_distances(label, names, pack.cells()[rows][is_known])
    uncalibrated = method.uncalibrated().aggregate(logit[is_known]).probability
    ids, code = np.unique(names, return_inverse=True)
    weights = resample_patients(len(ids), seed=seed, num_resamples=num_resamples)
    raw, smoothed = _judged_ways(method, predictions, code, weights)
    judged = smoothed or raw
    table = patient_table(predictions, judged.column, threshold=judged.threshold)
    drawn = weights[: min(num_resamples, _RESAMPLES_OF_BANDS)] if len(ids) > 1 else weights[:0]
    num_unknown = int((~is_known).sum())
    ece_uncalibrated = measure.ece(label, uncalibrated)
    notes = _flattering_notes(method, set(ids)) + _notes(predictions, table, num_unknown)
    notes += _calibration_notes(raw.metrics["ece"], ece_uncalibrated)
    return Evaluation(
        split=split,
        num_patients=len(ids),
        num_patches=len(predictions),
        num_unknown=num_unknown,
        judged=judged,
        raw=None if smoothed is None else raw,
        ece_uncalibrated=ece_uncalibrated,
        by_border=_by_border(predictions, judged, code, weights),
        regions=summary(table, weights),
        predictions=predictions,
        patients=table,
        bands=roc_and_pr_bands(label, predictions[judged.column].to_numpy(), code, weights=drawn),
        notes=tuple(notes),
        record=provenance(
            method=method.summary(),
            data_fingerprint=pack.info.source_fingerprint,
            precision=compute.precision,
            seed=seed,
            num_resamples=num_resamples,
        ),
    )


def _judged_ways(
    method: Predictor,
    predictions: pd.DataFrame,
    code: NDArray[np.integer],
    weights: NDArray[np.integer],
) -> tuple[MetricSet, MetricSet | None]:
    """Judge the probabilities as they are and, where the method smooths, as smoothed."""
    raw = compute_metrics(predictions, "probability", method.threshold, code, weights)
    if method.smoothing is None:
        return raw, None
    threshold = method.smoothing.threshold
    return raw, compute_metrics(predictions, "probability_smoothed", threshold, code, weights)


def _by_border(
    predictions: pd.DataFrame,
    judged: MetricSet,
    code: NDArray[np.integer],
    weights: NDArray[np.integer],
) -> dict[int, MetricSet]:
    """Judge the patches at each distance from the label border as ``judged`` judges all."""
    found = {}
    for distance in DISTANCES:
        at = (predictions["border_distance"] == distance).to_numpy()
        found[distance] = compute_metrics(
            predictions[at], judged.column, judged.threshold, code[at], weights
        )
    return found


def _logits(
    method: Predictor,
    pack: Pack,
    rows: NDArray[np.int64],
    *,
    compute: DeviceConfig,
    batch_size: int,
) -> NDArray[np.float32]:
    parts = []
    compute.throughput.start()
    with progress(len(rows), what="predicting") as bar:
        for part in method.predict(pack, rows, device_config=compute, batch_size=batch_size):
            parts.append(part.logit)
            bar.update(len(part.logit))
    compute.throughput.log("predicted")
    return np.concatenate(parts)


def predictions_table(
    method: Predictor, pack: Pack, rows: NDArray[np.int64], logit: NDArray[np.float32]
) -> pd.DataFrame:
    """Return one row a patch of ``rows``, all that the method says of it.

    Args:
        method: Whose logits they are.
        pack: The data.
        rows: Whole patients, so that each patch has its neighbours.
        logit: Shape (N, k, num_classes), as ``Method.predict`` gives them.
    """
    said = method.aggregate(logit)
    columns = pack.index.iloc[rows]
    table = pd.DataFrame(
        {
            "patient": pack.patient_of[rows],
            "x": columns["x"].to_numpy(),
            "y": columns["y"].to_numpy(),
            "label": columns["label"].to_numpy(),
            "probability": said.probability,
        }
    )
    if said.uncertainty is not None:
        table["uncertainty"] = said.uncertainty
    smoothed = method.smoothed(
        said.probability,
        columns["patient"].to_numpy(),
        pack.cells()[rows],
        patch_um=pack.info.patch_px * pack.info.mpp,
    )
    if smoothed is not None:
        table["probability_smoothed"] = smoothed
    return table


def compute_metrics(
    predictions: pd.DataFrame,
    column: str,
    threshold: float,
    code: NDArray[np.integer],
    weights: NDArray[np.integer],
) -> MetricSet:
    """Compare a column of probabilities with the labels.

    Args:
        predictions: Columns label (0 or 1) and ``column``.
        column: The probability of IDC.
        threshold: From which a patch is called IDC.
        code: Each patch's patient, a column of ``weights``.
        weights: How often each resample draws each patient, shape (R, P). One patient alone
            gives no intervals.
    """
    label, probability = predictions["label"].to_numpy(), predictions[column].to_numpy()
    values = resampled_metrics(label, probability, code, threshold=threshold, weights=weights)
    none, num_patients = (np.nan, np.nan), len(np.unique(code))
    return MetricSet(
        column=column,
        threshold=threshold,
        metrics=measure.all_metrics(label, probability, threshold=threshold),
        intervals={name: interval(of) if num_patients > 1 else none for name, of in values.items()},
        confusion=measure.confusion(label, probability, threshold=threshold),
    )


def _flattering_notes(method: Predictor, patients: set[str]) -> list[str]:
    notes = []
    for role, what in (("train", "was trained"), ("val", "had its epoch and threshold chosen")):
        if seen := method.patients(role) & patients:
            notes.append(
                f"a checkpoint {what} on {len(seen)} of these patients: the figures flatter it"
            )
    return notes


def _notes(predictions: pd.DataFrame, patients: pd.DataFrame, num_unknown: int) -> list[str]:
    notes = []
    if num_unknown:
        notes.append(f"{num_unknown} patches of unknown label are left out")
    if len(patients) == 1:
        notes.append("one patient alone gives no intervals")
    present = predictions["label"].unique()
    if len(present) == 1:
        only = "IDC" if present[0] else "non-IDC"
        notes.append(f"every label is {only}: AUC and all that needs both classes has no value")
    elif num_single := int(patients["auc"].isna().sum()):
        who = "1 patient has" if num_single == 1 else f"{num_single} patients have"
        whose = "its" if num_single == 1 else "their"
        notes.append(f"{who} one class only, so no AUC of {whose} own")
    columns = ("probability_smoothed", "probability")
    judged = next(name for name in columns if name in predictions)
    if predictions[judged].nunique() == 1:
        notes.append("all probabilities are equal: the ranking is a coin's")
    return notes


def _calibration_notes(calibrated: float, uncalibrated: float) -> list[str]:
    notes = []
    if calibrated > uncalibrated:
        notes.append(
            f"the temperature, fitted on val patients, does not help here: ECE {calibrated:.4f}, "
            f"{uncalibrated:.4f} without it"
        )
    return notes
