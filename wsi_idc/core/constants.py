"""Constants that several packages share, and the table of metrics; without heavy imports."""

from pathlib import Path
from typing import NamedTuple

PATCH_PX = 50
CLASS_NAMES = ("non-IDC", "IDC")
NUM_CLASSES = len(CLASS_NAMES)
IDC = 1  # label of IDC, and index of its class
ROLES = ("train", "val", "test")  # of a patient in a run
NO_ROLE = "in no split"
MAX_SEED = 2**32 - 1
DEFAULT_RUNS = Path("runs")
DEFAULT_MAPS = Path("maps")
DEFAULT_REPORT = Path("report")
PREDICT_BATCH_SIZE = 64
NUM_RESAMPLES = 2000  # of a bootstrap over patients
# A file with values outside these limits is damaged or forged; some would overflow divisions.
POSSIBLE_MPP = (1e-3, 100.0)
POSSIBLE_TEMPERATURE = (1e-3, 1e3)  # training ends within 0.05 and 20


class MetricInfo(NamedTuple):
    """Description of a metric for people.

    Attributes:
        title: Name in figures and on pages.
        smaller_is_better: Whether a smaller value is the better one.
        is_headline: Whether overviews show the metric.
        depends_on_prevalence: Whether values can be compared on the same patches only.
    """

    title: str
    smaller_is_better: bool = False
    is_headline: bool = False
    depends_on_prevalence: bool = False


# In reading order; prevalence, which others depend on and no value of which is better, comes last.
METRIC_TABLE = {
    "auc": MetricInfo("AUC", is_headline=True),
    "average_precision": MetricInfo(
        "Average precision", is_headline=True, depends_on_prevalence=True
    ),
    "balanced_accuracy": MetricInfo("Balanced accuracy", is_headline=True),
    "f1": MetricInfo("F1", is_headline=True, depends_on_prevalence=True),
    "sensitivity": MetricInfo("Sensitivity", is_headline=True),
    "specificity": MetricInfo("Specificity", is_headline=True),
    "ppv": MetricInfo("PPV (precision)", depends_on_prevalence=True),
    "npv": MetricInfo("NPV", depends_on_prevalence=True),
    "accuracy": MetricInfo("Accuracy", depends_on_prevalence=True),
    "mcc": MetricInfo("MCC", depends_on_prevalence=True),
    "brier": MetricInfo("Brier score", smaller_is_better=True),
    "ece": MetricInfo("ECE", smaller_is_better=True, is_headline=True),
    "prevalence": MetricInfo("Prevalence of IDC", is_headline=True, depends_on_prevalence=True),
}
METRICS = tuple(METRIC_TABLE)
HEADLINE_METRICS = tuple(name for name in METRICS if METRIC_TABLE[name].is_headline)
SMALLER_IS_BETTER = tuple(name for name in METRICS if METRIC_TABLE[name].smaller_is_better)
# Titles of metrics, and of the figures that only patients have.
TITLES = {name: info.title for name, info in METRIC_TABLE.items()}
TITLES |= {"dice": "Dice", "area_bias": "Area bias"}
# Metrics that may choose the best epoch of a training and the best trial of a search.
MONITOR_METRICS = ("average_precision", "auc", "f1", "balanced_accuracy")
