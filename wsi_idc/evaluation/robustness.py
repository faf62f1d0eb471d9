"""Evaluate a predictor on patches with changed stain, light, focus, compression or resolution."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.core.progress import progress
from wsi_idc.data.pack import Pack
from wsi_idc.data.perturbations import PERTURBATIONS
from wsi_idc.inference.predict import RawPrediction, ReadFn
from wsi_idc.inference.predictor import Predictor
from wsi_idc.metrics.classification import all_metrics, auc
from wsi_idc.runtime.device import DeviceConfig

UNCHANGED = "unchanged"
_METRICS = ("auc", "average_precision", "sensitivity", "specificity")
# Column and title of each panel of the figure.
_PANELS = (("auc", "AUC"), ("sensitivity", "Sensitivity"), ("mean_novelty", "Mean novelty"))
_HEIGHT_PER_ROW = 0.24
_MAX_HELD_BYTES = 2**30


def robustness(
    predictor: Predictor,
    pack: Pack,
    patients: list[str],
    *,
    device_config: DeviceConfig,
    batch_size: int = PREDICT_BATCH_SIZE,
) -> pd.DataFrame:
    """Evaluate the labelled patches of ``patients``, unchanged and with each change.

    Returns:
        One row per change. Columns: change, metrics at the predictor's threshold, called_idc
        (fraction of patches called IDC), mean_novelty, novelty_auroc, cautions (fraction of
        patients above the limit of novelty). ``novelty_auroc`` is the AUROC with which the mean
        novelty of a patient separates changed patients from unchanged patients. Without a novelty
        model, the last three columns are NaN.
    """
    known = pack.index["label"].to_numpy() >= 0
    rows = np.flatnonzero(np.isin(pack.patient_of, patients) & known)
    label, patient = pack.index["label"].to_numpy()[rows], pack.patient_of[rows]
    changes = {UNCHANGED: lambda patches: patches} | PERTURBATIONS
    chunks = np.split(np.arange(len(rows)), range(batch_size, len(rows), batch_size))
    read = _reader(pack, rows)
    records, first = [], None
    with (
        progress(len(rows) * len(changes), what="predicting changed patches") as bar,
        predictor.batch_predictor(device_config=device_config, batch_size=batch_size) as predict,
    ):
        for name, change in changes.items():
            parts = predict(chunks, read=lambda chunk, change=change: change(read(chunk)))
            prediction = RawPrediction.concatenate(parts, bar)
            probability = predictor.aggregate(prediction.logit).probability
            metrics = all_metrics(label, probability, threshold=predictor.threshold)
            called = float((probability >= predictor.threshold).mean())
            record = {"change": name, **{key: metrics[key] for key in _METRICS}}
            novelty = predictor.novelty(prediction.distance)
            first = novelty if first is None else first
            columns = _novelty_columns(predictor, novelty, first, patient)
            records.append({**record, "called_idc": called, **columns})
    return pd.DataFrame(records)


def _reader(pack: Pack, rows: NDArray[np.int64]) -> ReadFn:
    """Return a function that takes a slice ``chunk`` and returns the patches ``rows[chunk]``.

    If the patches need little memory, they are all read now; else each call reads its patches.
    """
    if len(rows) * pack.info.patch_px**2 * 3 > _MAX_HELD_BYTES:
        return lambda chunk: pack.read(rows[chunk])
    patches = pack.read(rows)
    return lambda chunk: patches[chunk]


def _novelty_columns(
    predictor: Predictor,
    novelty: NDArray[np.float32] | None,
    unchanged: NDArray[np.float32] | None,
    patient: NDArray,
) -> dict[str, float]:
    if novelty is None or unchanged is None:
        return dict.fromkeys(("mean_novelty", "novelty_auroc", "cautions"), np.nan)
    _, code, counts = np.unique(patient, return_inverse=True, return_counts=True)
    before, after = (np.bincount(code, values) / counts for values in (unchanged, novelty))
    limits = np.array([predictor.novelty_limit(int(count)) for count in counts])
    is_changed = np.repeat([0, 1], len(counts))
    return {
        "mean_novelty": float(novelty.mean()),
        "novelty_auroc": auc(is_changed, np.concatenate([before, after])),
        "cautions": float((after > limits).mean()),
    }


def robustness_chart(table: pd.DataFrame) -> Figure:
    """Draw AUC, sensitivity and novelty of each change; a line marks the unchanged patches."""
    panels = [panel for panel in _PANELS if table[panel[0]].notna().any()]
    size = (1.6 + 2.8 * len(panels), 1.2 + _HEIGHT_PER_ROW * len(table))
    figure = Figure(figsize=size, layout="constrained")
    places = np.arange(len(table))[::-1]
    for ax, (name, title) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        values = table[name].to_numpy(float)
        worse = np.abs(values - values[0])
        ax.axvline(values[0], color="0.6", linestyle="--", linewidth=1)
        ax.hlines(places, values[0], values, color="0.8", linewidth=3)
        ax.scatter(values, places, c=worse, cmap="cividis_r", edgecolor="0.3", s=30, zorder=3)
        # The AUC of a useful model is near 1; other columns can have any value from 0 to 1.
        low = float(values.min()) if name == "auc" else 0.0
        margin = 0.05 * (1.0 - low) + 0.001  # never 0, even if all values are 1
        ax.set(title=title, xlim=(low - margin, 1 + margin))
        ax.set(yticks=places, yticklabels=table["change"])
    figure.suptitle("Changed patches (dashed line: unchanged)")
    return figure
