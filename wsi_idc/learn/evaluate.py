"""How well a checkpoint does on patients that it has not seen."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.data.pack import Pack
from wsi_idc.errors import DataError
from wsi_idc.files import write_json, write_text
from wsi_idc.learn import metrics as measure
from wsi_idc.learn.calibrate import idc_probability
from wsi_idc.learn.predict import check_fits, predict_logits
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.device import Compute
from wsi_idc.provenance import provenance

ROLES = ("test", "val", "train", "unseen", "all")


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a checkpoint over some patients.

    Attributes:
        split: Which patients: test, val, train, unseen or all.
        num_patients, num_patches: Evaluated; patches of unknown label are left out.
        num_unknown: Patches left out for that.
        threshold: Probability from which a patch is called IDC, from the checkpoint.
        metrics: Name to value over all patches.
        intervals: Name to 95 % interval by bootstrap over patients.
        confusion: Counts.
        predictions: One row a patch: patient, x, y, label, probability.
        patients: One row a patient: patches, prevalence, auc, sensitivity, specificity.
        record: What was evaluated on what, JSON-ready.
    """

    split: str
    num_patients: int
    num_patches: int
    num_unknown: int
    threshold: float
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confusion: measure.Confusion
    predictions: pd.DataFrame
    patients: pd.DataFrame
    record: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return all but the tables, JSON-ready; what is undefined is null."""
        return {
            "split": self.split,
            "num_patients": self.num_patients,
            "num_patches": self.num_patches,
            "num_unknown": self.num_unknown,
            "threshold": self.threshold,
            "metrics": {name: _or_none(value) for name, value in self.metrics.items()},
            "intervals_95": {
                name: [_or_none(value) for value in pair] for name, pair in self.intervals.items()
            },
            "confusion": asdict(self.confusion),
            "provenance": self.record,
        }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def choose_patients(
    checkpoint: Checkpoint, pack: Pack, split: str, *, allow_seen: bool = False
) -> list[str]:
    """Return the patients of the pack that a word stands for.

    Args:
        checkpoint: Knows which patients it was trained on and chosen by.
        pack: The data.
        split: test, val or train of the checkpoint's split; unseen, neither its train nor val;
            or all.
        allow_seen: Let it be evaluated on patients that it was trained on.

    Raises:
        DataError: There is none, or the checkpoint was trained on one of them.
    """
    here = set(pack.patients)
    if split == "all":
        chosen = here
    elif split == "unseen":
        chosen = here - checkpoint.patients("train", "val")
    else:
        chosen = here & checkpoint.patients(split)
    if not chosen:
        raise DataError(
            f"none of the checkpoint's {split} patients is in {pack.path}; "
            "use --split unseen for data of your own"
        )
    seen = sorted(chosen & checkpoint.patients("train"))
    if seen and not allow_seen:
        raise DataError(
            f"the checkpoint was trained on {len(seen)} of these patients, {seen[0]} first: the "
            "figures would flatter it; use --split test, or --allow-seen to do it all the same"
        )
    return sorted(chosen)


def evaluate(
    checkpoint: Checkpoint,
    pack: Pack,
    patients: list[str],
    *,
    split: str,
    compute: Compute,
    batch_size: int,
    seed: int = 0,
    num_resamples: int = measure.NUM_RESAMPLES,
) -> Evaluation:
    """Predict every patch of known label of ``patients`` and compare with the labels.

    Raises:
        CheckpointError: The checkpoint does not fit the data.
        DataError: No patch has a known label.
    """
    check_fits(checkpoint, pack)
    member = np.isin(pack.patient_of, patients)
    known = pack.index["label"].to_numpy() >= 0
    rows = np.flatnonzero(member & known)
    if len(rows) == 0:
        raise DataError(f"{pack.path}: no patch of these patients has a known label")
    logit = predict_logits(checkpoint.build(), pack, rows, compute=compute, batch_size=batch_size)
    probability = idc_probability(logit, temperature=checkpoint.temperature)
    columns = pack.index.iloc[rows]
    label = columns["label"].to_numpy()
    table = pd.DataFrame(
        {
            "patient": pack.patient_of[rows],
            "x": columns["x"].to_numpy(),
            "y": columns["y"].to_numpy(),
            "label": label,
            "probability": probability,
        }
    )
    ranked = {"auc": measure.auc, "average_precision": measure.average_precision}
    code = columns["patient"].to_numpy()
    return Evaluation(
        split=split,
        num_patients=table["patient"].nunique(),
        num_patches=len(rows),
        num_unknown=int((member & ~known).sum()),
        threshold=checkpoint.threshold,
        metrics=measure.all_metrics(label, probability, threshold=checkpoint.threshold),
        intervals={
            name: measure.patient_bootstrap(
                metric, label, probability, code, seed=seed, num_resamples=num_resamples
            )
            for name, metric in ranked.items()
        },
        confusion=measure.confusion(label, probability, threshold=checkpoint.threshold),
        predictions=table,
        patients=_by_patient(table, checkpoint.threshold),
        record=provenance(
            checkpoint=checkpoint.summary(),
            data_fingerprint=pack.info.source_fingerprint,
            seed=seed,
        ),
    )


def _by_patient(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    rows = []
    for patient, part in table.groupby("patient"):
        label: NDArray[np.integer] = part["label"].to_numpy()
        found = measure.all_metrics(label, part["probability"].to_numpy(), threshold=threshold)
        names = ("prevalence", "auc", "sensitivity", "specificity", "f1")
        rows.append(
            {"patient": patient, "patches": len(part), **{name: found[name] for name in names}}
        )
    return pd.DataFrame(rows)


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Write metrics.json, patients.csv and predictions.csv into the folder ``out``."""
    write_json(out / "metrics.json", evaluation.as_dict())
    write_text(out / "patients.csv", evaluation.patients.to_csv(index=False))
    write_text(out / "predictions.csv", evaluation.predictions.to_csv(index=False))
