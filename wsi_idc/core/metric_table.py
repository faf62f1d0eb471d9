"""Names, titles and directions of the metrics."""

from typing import NamedTuple


class MetricInfo(NamedTuple):
    """Title and properties of a metric.

    Attributes:
        title: Name of the metric in figures and on HTML pages.
        smaller_is_better: Whether a smaller value of the metric is better.
        is_headline: Whether overviews show the metric.
        depends_on_prevalence: Whether the metric depends on the fraction of IDC patches. If so,
            compare values of two data sets only if both have the same fraction.
        needs_threshold: Whether the metric compares the labels with calls at a threshold.
    """

    title: str
    smaller_is_better: bool = False
    is_headline: bool = False
    depends_on_prevalence: bool = False
    needs_threshold: bool = False


# Metrics in the order of the table rows. Prevalence is last: it describes the data, not the model.
METRIC_TABLE = {
    "auc": MetricInfo("AUC", is_headline=True),
    "average_precision": MetricInfo(
        "Average precision", is_headline=True, depends_on_prevalence=True
    ),
    "balanced_accuracy": MetricInfo("Balanced accuracy", is_headline=True, needs_threshold=True),
    "f1": MetricInfo("F1", is_headline=True, depends_on_prevalence=True, needs_threshold=True),
    "sensitivity": MetricInfo("Sensitivity", is_headline=True, needs_threshold=True),
    "specificity": MetricInfo("Specificity", is_headline=True, needs_threshold=True),
    "ppv": MetricInfo("PPV (precision)", depends_on_prevalence=True, needs_threshold=True),
    "npv": MetricInfo("NPV", depends_on_prevalence=True, needs_threshold=True),
    "accuracy": MetricInfo("Accuracy", depends_on_prevalence=True, needs_threshold=True),
    "mcc": MetricInfo("MCC", depends_on_prevalence=True, needs_threshold=True),
    "brier": MetricInfo("Brier score", smaller_is_better=True),
    "ece": MetricInfo("ECE", smaller_is_better=True, is_headline=True),
    "prevalence": MetricInfo("Prevalence of IDC", is_headline=True, depends_on_prevalence=True),
}
METRICS = tuple(METRIC_TABLE)
HEADLINE_METRICS = tuple(name for name in METRICS if METRIC_TABLE[name].is_headline)
SMALLER_IS_BETTER = tuple(name for name in METRICS if METRIC_TABLE[name].smaller_is_better)
THRESHOLD_METRICS = tuple(name for name in METRICS if METRIC_TABLE[name].needs_threshold)
# Title of each metric. ``core.constants`` adds the metrics that only patients have.
TITLES = {name: info.title for name, info in METRIC_TABLE.items()}
# Metrics that can choose the best epoch of a training and the best trial of a search.
MONITOR_METRICS = ("average_precision", "auc", "f1", "balanced_accuracy")
