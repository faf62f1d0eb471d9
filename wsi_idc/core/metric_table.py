"""Names, titles and directions of the metrics."""

from typing import NamedTuple


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
# Metrics that may choose the best epoch of a training and the best trial of a search.
MONITOR_METRICS = ("average_precision", "auc", "f1", "balanced_accuracy")
