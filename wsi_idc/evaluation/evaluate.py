"""Evaluate a predictor on held-out patients."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.constants import DEFAULT_EVALUATIONS, NUM_RESAMPLES, ROLES
from wsi_idc.core.errors import DataError
from wsi_idc.core.progress import progress
from wsi_idc.core.provenance import provenance
from wsi_idc.core.text import count
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.novelty import novelty_bins
from wsi_idc.evaluation.results import Evaluation, MetricSet, evaluation_name, folder_in_run
from wsi_idc.inference.predict import RawPrediction
from wsi_idc.inference.predictor import Predictor
from wsi_idc.inference.probability import smoothed_probability
from wsi_idc.metrics import bootstrap, classification
from wsi_idc.metrics.patients import DISTANCES, border_distances, patient_table, summary
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.checkpoint_files import bundled_checkpoint
from wsi_idc.runtime.device import DeviceConfig

# Fewer resamples are enough for the bands of the curves, because the bands are only drawn.
_RESAMPLES_OF_BANDS = 500


def evaluation_folder(predictor: Predictor, split: str) -> Path:
    """Return the default folder of an evaluation.

    The folder of an ensemble or of the bundled checkpoint is in eval/. The folder of any other
    checkpoint is in its run.
    """
    name = evaluation_name(split, tta=predictor.tta, smooth=predictor.smoothing is not None)
    first = predictor.checkpoints[0].source
    assert first is not None
    if len(predictor.checkpoints) > 1:
        fingerprints = json.dumps([member.fingerprint for member in predictor.checkpoints])
        digest = hashlib.sha256(fingerprints.encode()).hexdigest()[:8]
        return DEFAULT_EVALUATIONS / f"ensemble-{digest}-{name}"
    if first == bundled_checkpoint():
        return DEFAULT_EVALUATIONS / f"bundled-{name}"
    return folder_in_run(first, name)


def choose_patients(
    predictor: Predictor, pack: Pack, split: str, *, allow_seen: bool = False
) -> list[str]:
    """Select the patients to evaluate; return their sorted ids.

    Args:
        predictor: Predictor to evaluate; each of its checkpoints contains a split.
        pack: Pack with the available patients.
        split: Group of patients. "test", "val" or "train" selects the patients with this role in
            the splits of all checkpoints. If the split of a checkpoint has no test patient, or no
            patient of the pack, "test" means "unseen" for this checkpoint. "unseen" selects the
            patients that no checkpoint has in train or val. "all" selects every patient.
        allow_seen: Accept patients that a checkpoint was trained on.

    Raises:
        DataError: The group has no patient, or a checkpoint was trained on one of these patients
            and ``allow_seen`` is False.
    """
    available = set(pack.patients)
    unseen = available - predictor.patients("train", "val")
    if split == "all":
        chosen = available
    elif split == "unseen":
        chosen = unseen
    else:
        chosen = available
        for member in predictor.checkpoints:
            if split == "test" and not _has_test_patients(member, pack):
                chosen = chosen - member.patients("train", "val")
            else:
                chosen = chosen & member.patients(split)
    if not chosen:
        owner = "the checkpoint" if len(predictor.checkpoints) == 1 else "all checkpoints"
        remedy = "use --split unseen"
        if not unseen:
            remedy = "all its patients are train or val patients: use --split val"
        raise DataError(f"{pack.path} contains none of the {split} patients of {owner}; {remedy}")
    seen = sorted(chosen & predictor.patients("train"))
    if seen and not allow_seen:
        raise DataError(
            f"the checkpoint was trained on {len(seen)} of these patients ({seen[0]}, ...): the "
            "metrics would be too good; use --split test, or --allow-seen to evaluate anyway"
        )
    return sorted(chosen)


def _has_test_patients(checkpoint: Checkpoint, pack: Pack) -> bool:
    """Return True if the split has test patients, and at least one patient of the pack."""
    is_known = not checkpoint.patients(*ROLES).isdisjoint(pack.patients)
    return is_known and "test" in checkpoint.split.values()


def _is_new_data(predictor: Predictor, pack: Pack) -> bool:
    """Return True if no checkpoint's split contains a patient of the pack."""
    return predictor.patients(*ROLES).isdisjoint(pack.patients)


def evaluate(
    predictor: Predictor,
    pack: Pack,
    patients: list[str],
    *,
    split: str,
    device_config: DeviceConfig,
    batch_size: int,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Evaluation:
    """Predict all patches of ``patients``, and evaluate the patches with a known label.

    Patches with an unknown label are predicted too: smoothing uses their probabilities.

    Raises:
        CheckpointError: A checkpoint does not fit the data.
        DataError: No patch of these patients has a known label.
    """
    predictor.validate_input(pack)
    rows = np.flatnonzero(np.isin(pack.patient_of, patients))
    is_known = pack.index["label"].to_numpy()[rows] >= 0
    if not is_known.any():
        raise DataError(f"{pack.path}: no patch of these patients has a known label")
    raw_prediction = _predict(
        predictor, pack, rows, device_config=device_config, batch_size=batch_size
    )
    predictions = _known_predictions(predictor, pack, rows, raw_prediction)
    label = predictions["label"].to_numpy()
    ids, code = np.unique(predictions["patient"].to_numpy(), return_inverse=True)
    weights = bootstrap.resample_patients(len(ids), seed=seed, num_resamples=num_resamples)
    raw = final = compute_metrics(predictions, "probability", predictor.threshold, code, weights)
    if predictor.smoothing is not None:
        threshold = predictor.smoothing.threshold
        final = compute_metrics(predictions, "probability_smoothed", threshold, code, weights)
    table = patient_table(predictions, final.column, threshold=final.threshold)
    uncalibrated = predictor.uncalibrated().aggregate(raw_prediction.logit[is_known]).probability
    ece_uncalibrated = classification.ece(label, uncalibrated)
    num_unknown = int((~is_known).sum())
    notes = [
        *_split_notes(predictor, pack, split),
        *_notes(predictor, predictions, table, num_unknown),
        *_doubts(predictor, pack, ece=raw.metrics["ece"], ece_uncalibrated=ece_uncalibrated),
    ]
    num_drawn = min(num_resamples, _RESAMPLES_OF_BANDS) if len(ids) > 1 else 0
    return Evaluation(
        split=split,
        num_patients=len(ids),
        num_patches=len(predictions),
        num_unknown=num_unknown,
        final=final,
        raw=None if final is raw else raw,
        ece_uncalibrated=ece_uncalibrated,
        by_border=_by_border(predictions, final, code, weights),
        patient_summary=summary(table, weights),
        predictions=predictions,
        patients=table,
        bands=bootstrap.roc_and_pr_bands(
            label, predictions[final.column].to_numpy(), code, weights=weights[:num_drawn]
        ),
        notes=tuple(notes),
        record=provenance(
            method=predictor.summary(),
            data_fingerprint=pack.info.source_fingerprint,
            precision=device_config.precision,
            seed=seed,
            num_resamples=num_resamples,
        ),
        slides=_slide_table(pack, predictions, final),
        novelty=novelty_bins(predictions, final.column, final.threshold),
    )


def _by_border(
    predictions: pd.DataFrame,
    final: MetricSet,
    code: NDArray[np.integer],
    weights: NDArray[np.integer],
) -> dict[int, MetricSet]:
    """Compute the metrics of the patches at each distance from the border of their label."""
    masks = {step: (predictions["border_distance"] == step).to_numpy() for step in DISTANCES}
    return {
        step: compute_metrics(predictions[mask], final.column, final.threshold, code[mask], weights)
        for step, mask in masks.items()
    }


def _slide_table(pack: Pack, predictions: pd.DataFrame, final: MetricSet) -> pd.DataFrame | None:
    if not pack.slides:
        return None
    keys = ("patient", "slide")
    return patient_table(predictions, final.column, threshold=final.threshold, keys=keys)


def _predict(
    predictor: Predictor,
    pack: Pack,
    rows: NDArray[np.int64],
    *,
    device_config: DeviceConfig,
    batch_size: int,
) -> RawPrediction:
    device_config.throughput.start()
    batches = predictor.predict(pack, rows, device_config=device_config, batch_size=batch_size)
    with progress(len(rows), what="predicting") as bar:
        raw_prediction = RawPrediction.concatenate(batches, bar)
    device_config.throughput.log("predicted")
    return raw_prediction


def _predictions_table(
    predictor: Predictor, pack: Pack, rows: NDArray[np.int64], raw_prediction: RawPrediction
) -> pd.DataFrame:
    """Build a table with one row per patch: patient, x, y, label, outputs of the predictor.

    ``rows`` has the positions of the patches in the pack. It must have all patches of a patient,
    because smoothing uses the neighbors of each patch.
    """
    prediction = predictor.aggregate(raw_prediction.logit)
    index = pack.index.iloc[rows]
    table = index[["x", "y", "label"]].reset_index(drop=True)
    table.insert(0, "patient", pack.patient_of[rows])
    if pack.slides:
        table.insert(1, "slide", [pack.slides[code].name for code in index["slide"]])
    table["probability"] = prediction.probability
    if prediction.uncertainty is not None:
        table["uncertainty"] = prediction.uncertainty
    if (novelty := predictor.novelty(raw_prediction.distance)) is not None:
        table["novelty"] = novelty
    if smoothing := predictor.smoothing:
        table["probability_smoothed"] = smoothed_probability(
            prediction.probability,
            index["slide"].to_numpy(),
            pack.cells()[rows],
            smoothing=smoothing,
            cell_um=pack.info.patch_px * pack.info.mpp,
        )
    return table


def _known_predictions(
    predictor: Predictor, pack: Pack, rows: NDArray[np.int64], raw_prediction: RawPrediction
) -> pd.DataFrame:
    """Build the table of the patches with a known label, with the column ``border_distance``.

    The arguments are those of ``_predictions_table``.
    """
    is_known = pack.index["label"].to_numpy()[rows] >= 0
    table = _predictions_table(predictor, pack, rows, raw_prediction)
    table, rows = table[is_known].reset_index(drop=True), rows[is_known]
    table["border_distance"] = border_distances(
        table["label"].to_numpy(), pack.index["slide"].to_numpy()[rows], pack.cells()[rows]
    )
    return table


def compute_metrics(
    predictions: pd.DataFrame,
    column: str,
    threshold: float,
    code: NDArray[np.integer],
    weights: NDArray[np.integer],
) -> MetricSet:
    """Compute the metrics of a column of probabilities.

    With one patient, all intervals are NaN.

    Args:
        predictions: Table of N patches with the columns label (0 or 1) and ``column``.
        column: Name of the column of probabilities.
        threshold: Lowest probability that is called IDC.
        code: For each patch, the column of its patient in ``weights``; shape (N,).
        weights: Weights of P patients in R resamples of the bootstrap, shape (R, P).
    """
    label, probability = predictions["label"].to_numpy(), predictions[column].to_numpy()
    resampled = bootstrap.resampled_metrics(
        label, probability, code, threshold=threshold, weights=weights
    )
    has_intervals = len(np.unique(code)) > 1
    return MetricSet(
        column=column,
        threshold=threshold,
        metrics=classification.all_metrics(label, probability, threshold=threshold),
        intervals={
            name: bootstrap.interval(values) if has_intervals else (np.nan, np.nan)
            for name, values in resampled.items()
        },
        confusion=classification.confusion(label, probability, threshold=threshold),
    )


def _is_of_other_training(predictor: Predictor, pack: Pack) -> bool:
    """Return True if a checkpoint was trained on another pack that has patients of ``pack``."""
    return any(
        checkpoint.provenance.get("data_fingerprint") != pack.info.source_fingerprint
        and not set(pack.patients).isdisjoint(checkpoint.split)
        for checkpoint in predictor.checkpoints
    )


def _split_notes(predictor: Predictor, pack: Pack, split: str) -> Iterator[str]:
    """Yield a note if other patients than the test patients are evaluated."""
    if split == "test" and _is_new_data(predictor, pack):
        yield "no checkpoint has a patient of these data, so all patients are evaluated"
    elif split == "test" and not all(_has_test_patients(m, pack) for m in predictor.checkpoints):
        yield "a checkpoint has no test patients, so unseen patients are evaluated"


def _doubts(
    predictor: Predictor, pack: Pack, *, ece: float, ece_uncalibrated: float
) -> Iterator[str]:
    """Yield notes on doubtful data and a doubtful temperature."""
    if pack.slides and _is_of_other_training(predictor, pack):
        yield (
            "the model was trained on another pack; if patient ids of slides have changed since "
            "then, slides of the training may be evaluated here"
        )
    if ece > ece_uncalibrated:
        yield (
            "the temperature, fitted on val patients, does not help here: "
            f"ECE {ece:.4f}, {ece_uncalibrated:.4f} without it"
        )


def _notes(
    predictor: Predictor, predictions: pd.DataFrame, patients: pd.DataFrame, num_unknown: int
) -> list[str]:
    notes = [
        f"a checkpoint {use} on {len(seen)} of these patients: the metrics are too good"
        for role, use in (("train", "was trained"), ("val", "was tuned (epoch, threshold)"))
        if (seen := predictor.patients(role).intersection(patients["patient"]))
    ]
    if num_unknown:
        notes.append(f"{count(num_unknown, 'patch', 'patches')} of unknown label left out")
    if len(patients) == 1:
        notes.append("with one patient there are no intervals")
    elif len(patients) < bootstrap.MIN_PATIENTS:
        notes.append(bootstrap.FEW_PATIENTS)
    labels = predictions["label"].unique()
    if len(labels) == 1:
        name = "IDC" if labels[0] else "non-IDC"
        notes.append(f"every label is {name}: metrics that need both classes are undefined")
    elif num_single := int(patients["auc"].isna().sum()):
        subject = count(num_single, "patient has", "patients have")
        notes.append(f"{subject} only one class, and therefore no AUC")
    column = "probability_smoothed" if "probability_smoothed" in predictions else "probability"
    if predictions[column].nunique() == 1:
        notes.append("all probabilities are equal, so they do not rank the patches")
    return notes
