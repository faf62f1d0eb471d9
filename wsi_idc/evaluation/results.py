"""What an evaluation says: metrics with intervals, tables, curves, notes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from wsi_idc.metrics import classification as measure
from wsi_idc.metrics.bootstrap import Band


@dataclass(frozen=True)
class MetricSet:
    """How good one column of probabilities is.

    Attributes:
        column: "probability" or "probability_smoothed".
        threshold: From which a patch is called IDC; set on val patients.
        metrics: Name to value over all patches, NaN where there is none.
        intervals: Name to 95 % interval by bootstrap over patients.
        confusion: Counts.
    """

    column: str
    threshold: float
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    confusion: measure.Confusion

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready; what is undefined is null."""
        return {
            "judged": self.column,
            "threshold": self.threshold,
            "metrics": measure.or_none(self.metrics),
            "intervals_95": {
                name: list(measure.or_none(dict(zip("lh", pair, strict=True))).values())
                for name, pair in self.intervals.items()
            },
            "confusion": asdict(self.confusion),
        }


@dataclass(frozen=True)
class Evaluation:
    """What a method is worth over some patients.

    Attributes:
        split: Which patients: test, val, train, unseen or all.
        num_patients, num_patches: Evaluated; patches of unknown label are left out.
        num_unknown: Patches left out for that.
        judged: The probabilities that the method ends with.
        raw: The same before smoothing; None where nothing is smoothed.
        ece_uncalibrated: ECE of the raw probabilities had no temperature been fitted.
        by_border: The metrics of the patches at each distance from the label border.
        regions: Spread of the patients' own AUC, Dice and area bias.
        predictions: One row a patch: patient, x, y, label, probability, what else the method
            gives, border_distance.
        patients: One row a patient, as ``regions.patient_table`` has it.
        bands: ROC and PR curve; None where there is only one class.
        notes: What a reader should know, in sentences.
        record: What was evaluated on what, JSON-ready.
    """

    split: str
    num_patients: int
    num_patches: int
    num_unknown: int
    judged: MetricSet
    raw: MetricSet | None
    ece_uncalibrated: float
    by_border: Mapping[int, MetricSet]
    regions: Mapping[str, Mapping[str, float]]
    predictions: pd.DataFrame
    patients: pd.DataFrame
    bands: tuple[Band, Band] | None
    notes: tuple[str, ...]
    record: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return all but the tables and curves, JSON-ready; what is undefined is null."""
        return {
            "split": self.split,
            "num_patients": self.num_patients,
            "num_patches": self.num_patches,
            "num_unknown": self.num_unknown,
            **self.judged.as_dict(),
            "ece_uncalibrated": self.ece_uncalibrated,
            "unsmoothed": None if self.raw is None else self.raw.as_dict(),
            "patients": {name: measure.or_none(of) for name, of in self.regions.items()},
            "by_border_distance": {
                str(distance): {"patches": sum(asdict(of.confusion).values()), **of.as_dict()}
                for distance, of in self.by_border.items()
            },
            "notes": list(self.notes),
            "provenance": self.record,
        }
