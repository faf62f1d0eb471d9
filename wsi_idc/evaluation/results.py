"""Results of an evaluation (metrics with intervals, tables, curves, notes) and their files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_idc.core.constants import EVALUATION_PAGE, METRICS_JSON
from wsi_idc.core.csv_table import csv_text
from wsi_idc.core.files import parse_json, write_json, write_text
from wsi_idc.metrics.classification import Confusion, nan_to_none, records

if TYPE_CHECKING:  # torch and pandas take seconds to import
    import pandas as pd

    from wsi_idc.data.pack import Pack
    from wsi_idc.evaluation.cam_quality import CamQuality
    from wsi_idc.inference.predictor import Predictor
    from wsi_idc.metrics.bootstrap import Band

PREDICTIONS_CSV = "predictions.csv"
_PATIENTS_CSV, _SLIDES_CSV, _ROBUSTNESS_CSV = "patients.csv", "slides.csv", "robustness.csv"
_NOVELTY_CSV = "novelty.csv"
# Arguments of ``core.files.ensure_writable`` for the folder of an evaluation.
EVALUATION_FILES = {
    "writes": (
        *(METRICS_JSON, _PATIENTS_CSV, _SLIDES_CSV, _NOVELTY_CSV, _ROBUSTNESS_CSV),
        *(PREDICTIONS_CSV, EVALUATION_PAGE, "figures"),
    ),
    "marks": (PREDICTIONS_CSV,),
}


@dataclass(frozen=True)
class MetricSet:
    """Metrics of one column of probabilities.

    Attributes:
        column: Name of the column: "probability" or "probability_smoothed".
        threshold: A patch is called IDC if its probability is at least the threshold. The threshold
            was chosen on val patients.
        metrics: Value of each metric over all patches; NaN for an undefined metric.
        intervals: 95 % interval of each metric, from a bootstrap over patients.
        confusion: Number of patches for each pair of label and predicted class.
    """

    column: str
    threshold: float
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    confusion: Confusion

    @property
    def num_patches(self) -> int:
        """Number of patches from which the metrics are computed."""
        return sum(asdict(self.confusion).values())

    def as_dict(self) -> dict[str, Any]:
        """Return the metrics as a dict for JSON. None replaces NaN."""
        return {
            "judged": self.column,
            "threshold": self.threshold,
            "metrics": nan_to_none(self.metrics),
            "intervals_95": {
                name: list(nan_to_none({"low": low, "high": high}).values())
                for name, (low, high) in self.intervals.items()
            },
            "confusion": asdict(self.confusion),
        }


@dataclass(frozen=True)
class Evaluation:
    """Results of a predictor on a group of patients.

    Attributes:
        split: Name of the group of patients: test, val, train, unseen or all.
        num_patients: Number of evaluated patients.
        num_patches: Number of evaluated patches, all with a known label.
        num_unknown: Number of patches that are left out because their label is unknown.
        final: Metrics of the final probabilities. These are smoothed if the predictor smooths.
        raw: Metrics of the probabilities before smoothing; None if the predictor does not smooth.
        ece_uncalibrated: ECE of the probabilities before temperature scaling and smoothing.
        by_border: For each distance from the label border, metrics of the patches at this distance.
        patient_summary: Statistics of the AUC, Dice and area bias of the patients, as
            ``metrics.patients.summary`` returns them.
        predictions: One row per patch. Columns: patient, slide (if the pack has slides), x, y,
            label, probability, further outputs of the predictor, border_distance.
        patients: Table with one row per patient: result of ``metrics.patients.patient_table``.
        slides: One row per slide. Columns: patient, slide, and the other columns of ``patients``.
            None if the pack has no slides.
        bands: ROC and PR curve with 95 % confidence bands; None if all labels are equal.
        notes: Sentences about the results.
        record: Description of the predictor, data, settings and program, as values for JSON.
        cam: Quality of the CAMs; None if the CAMs were not measured.
        robustness: Table with one row per change of the patches: result of
            ``robustness.robustness``. None if only unchanged patches were evaluated.
        novelty: Table with one row per bin of novelty: result of ``novelty.novelty_bins``. None if
            the predictor has no novelty model.
    """

    split: str
    num_patients: int
    num_patches: int
    num_unknown: int
    final: MetricSet
    raw: MetricSet | None
    ece_uncalibrated: float
    by_border: Mapping[int, MetricSet]
    patient_summary: Mapping[str, Mapping[str, float]]
    predictions: "pd.DataFrame"
    patients: "pd.DataFrame"
    bands: "tuple[Band, Band] | None"
    notes: tuple[str, ...]
    record: dict[str, Any]
    slides: "pd.DataFrame | None" = None
    robustness: "pd.DataFrame | None" = None
    novelty: "pd.DataFrame | None" = None
    cam: "CamQuality | None" = None

    def as_dict(self) -> dict[str, Any]:
        """Return the content of metrics.json as a dict. None replaces NaN."""
        tables = {"robustness": self.robustness, "by_novelty": self.novelty}
        return {
            "split": self.split,
            "num_patients": self.num_patients,
            "num_patches": self.num_patches,
            "num_unknown": self.num_unknown,
            **self.final.as_dict(),
            "ece_uncalibrated": self.ece_uncalibrated,
            "unsmoothed": None if self.raw is None else self.raw.as_dict(),
            "patients": {
                name: nan_to_none(values) for name, values in self.patient_summary.items()
            },
            "by_border_distance": {
                str(distance): {"patches": metric_set.num_patches, **metric_set.as_dict()}
                for distance, metric_set in self.by_border.items()
            },
            **{name: records(table) for name, table in tables.items() if table is not None},
            **({} if self.cam is None else {"cam": self.cam.as_dict()}),
            "notes": list(self.notes),
            "provenance": self.record,
        }


def evaluation_name(split: str, *, tta: bool, smooth: bool) -> str:
    """Return the name of an evaluation, such as "test-tta"; names of folders contain this name."""
    return split + "-tta" * tta + "-smooth" * smooth


def folder_in_run(run: Path, name: str) -> Path:
    """Return the default folder of the evaluation ``name``; ``run`` is a folder or a .pt file."""
    if run.suffix != ".pt":
        return run / f"eval-{name}"
    # Two checkpoints in one folder need two evaluation folders.
    prefix = "eval" if run.name == "best.pt" else f"{run.name.removesuffix('.pt')}-eval"
    return run.parent / f"{prefix}-{name}"


def numbered_folders(runs: Sequence[Path], out: Path) -> list[Path]:
    """Return the folder of each run's evaluation.

    Several runs get numbered subfolders of ``out``. If there is one run, its folder is ``out``.
    """
    if len(runs) < 2:
        return [out]
    names = enumerate((run.name.removesuffix(".pt") for run in runs), start=1)
    return [out / f"{number}-{name}" for number, name in names]


def is_evaluation(folder: Path) -> bool:
    """Return True if a folder contains a complete evaluation."""
    return (folder / METRICS_JSON).exists()


def is_evaluated(folder: Path, predictor: "Predictor", pack: "Pack") -> bool:
    """Return True if ``folder`` contains the evaluation of ``predictor`` on ``pack``."""
    try:
        record = parse_json((folder / METRICS_JSON).read_text(encoding="utf-8"))["provenance"]
        return bool(
            record["method"] == json.loads(json.dumps(predictor.summary()))
            and record["data_fingerprint"] == pack.info.source_fingerprint
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Write metrics.json, patients.csv and predictions.csv into the folder ``out``.

    slides.csv, novelty.csv and robustness.csv are written if the evaluation has their tables.
    predictions.csv is written first: this file marks the folder as the folder of an evaluation.
    metrics.json is written last: a folder with this file is complete.
    """
    (out / METRICS_JSON).unlink(missing_ok=True)
    optional = {_SLIDES_CSV: evaluation.slides, _NOVELTY_CSV: evaluation.novelty}
    optional[_ROBUSTNESS_CSV] = evaluation.robustness
    for name in optional:
        (out / name).unlink(missing_ok=True)
    write_text(out / PREDICTIONS_CSV, csv_text(evaluation.predictions))
    write_text(out / _PATIENTS_CSV, csv_text(evaluation.patients))
    for name, table in optional.items():
        if table is not None:
            write_text(out / name, csv_text(table))
    write_json(out / METRICS_JSON, evaluation.as_dict())
