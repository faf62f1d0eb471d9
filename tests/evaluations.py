"""Evaluations made by hand: of patches whose probabilities a test chooses."""

import numpy as np
import pandas as pd

from tests.packs import Cell, make_pack
from tests.trees import PATCH_PX
from wsi_idc.core.provenance import provenance
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.evaluate import compute_metrics, metrics_by_border
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.geometry.grid import cells_of
from wsi_idc.metrics.bootstrap import resample_patients, roc_and_pr_bands
from wsi_idc.metrics.classification import ece
from wsi_idc.metrics.patients import border_distances, patient_table, summary

METHOD = {
    "architecture": "cnn-bn",
    "checkpoint": "best.pt",
    "sha256": "cd" * 32,
    "input": {"patch_px": PATCH_PX, "mpp": 4.0, "input_px": None, "mean": [], "std": []},
    "cam_layer": "features",
    "metrics": {"epoch": 2},
    "tta": False,
    "smooth": False,
}


def patches(patient: str, labels: str, probabilities: list[float]) -> pd.DataFrame:
    """Return a row of patches of one patient, its labels as digits."""
    return pd.DataFrame(
        {
            "patient": patient,
            "x": PATCH_PX * np.arange(len(labels)),
            "y": 0,
            "label": [int(label) for label in labels],
            "probability": np.array(probabilities, np.float32),
        }
    )


def pack_of(path, predictions: pd.DataFrame) -> Pack:
    """Return a pack with just these patches."""
    rows = predictions.to_dict("records")
    return make_pack(
        path,
        [
            Cell(row["patient"], row["y"] // PATCH_PX, row["x"] // PATCH_PX, row["label"])
            for row in rows
        ],
    )


def evaluation_of(predictions: pd.DataFrame, *, threshold: float = 0.5, **record) -> Evaluation:
    """Return the evaluation of predictions; a column probability_smoothed is final if there."""
    predictions = predictions.copy()
    label, patient = predictions["label"].to_numpy(), predictions["patient"].to_numpy()
    cells = cells_of(predictions[["x", "y"]].to_numpy(np.int32), patch_px=PATCH_PX)
    predictions["border_distance"] = border_distances(label, patient, cells)
    ids, code = np.unique(patient, return_inverse=True)
    weights = resample_patients(len(ids), seed=0, num_resamples=20)
    raw = final = compute_metrics(predictions, "probability", threshold, code, weights)
    if "probability_smoothed" in predictions:
        final = compute_metrics(predictions, "probability_smoothed", threshold, code, weights)
    table = patient_table(predictions, final.column, threshold=threshold)
    return Evaluation(
        split="test",
        num_patients=len(ids),
        num_patches=len(predictions),
        num_unknown=0,
        final=final,
        raw=None if raw is final else raw,
        ece_uncalibrated=ece(label, predictions["probability"].to_numpy()),
        by_border=metrics_by_border(predictions, final, code, weights),
        patient_summary=summary(table, weights),
        predictions=predictions,
        patients=table,
        bands=roc_and_pr_bands(
            label,
            predictions[final.column].to_numpy(),
            code,
            weights=weights if len(ids) > 1 else weights[:0],
        ),
        notes=(),
        record=provenance(
            method={**METHOD, "smooth": final is not raw, **record.pop("method", {})},
            data_fingerprint="ab" * 32,
            seed=0,
            num_resamples=20,
        )
        | record,
    )
