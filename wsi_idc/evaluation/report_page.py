"""Page of an evaluation."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_idc.core.constants import HEADLINE_METRICS, METRIC_TABLE
from wsi_idc.evaluation.charts import BORDER_TITLES
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.metrics.classification import records
from wsi_idc.plotting.html import write_page
from wsi_idc.plotting.number_format import count

_BY_BORDER = ("auc", "balanced_accuracy", "f1", "sensitivity", "specificity", "ppv", "prevalence")


def write_evaluation_page(evaluation: Evaluation, path: Path, uris: Mapping[str, str]) -> None:
    """Write the page of an evaluation.

    Args:
        evaluation: The evaluation.
        path: The file to write.
        uris: Figures as data URIs, by name; the page leaves out those that are missing.
    """
    final, raw, record = evaluation.final, evaluation.raw, evaluation.record
    members = record["method"].get("ensemble") or [record["method"]]
    write_page(
        path,
        "evaluation/templates/report.html",
        evaluation=evaluation,
        final=final,
        columns={"value": final} if raw is None else {"smoothed": final, "not smoothed": raw},
        record=record,
        command=shlex.join(map(str, record["command"])),
        members=members,
        name=_predictor_name(members),
        facts=_facts(evaluation),
        headline={name: METRIC_TABLE[name] for name in HEADLINE_METRICS},
        uris=uris,
        border={BORDER_TITLES[key]: value for key, value in evaluation.by_border.items()},
        border_metrics=_BY_BORDER,
        patients=records(evaluation.patients),
    )


def _predictor_name(members: list[Mapping[str, Any]]) -> str:
    first = f"{members[0]['architecture']} ({members[0]['checkpoint'] or 'not in a file'})"
    return first if len(members) == 1 else f"an ensemble of {len(members)}, first {first}"


def _facts(evaluation: Evaluation) -> str:
    method = evaluation.record["method"]
    facts = [
        f"{evaluation.split} patients",
        count(evaluation.num_patients, "patient", "patients"),
        count(evaluation.num_patches, "patch", "patches"),
        *["8 views per patch"] * method["tta"],
        *["smoothed"] * method["smooth"],
        str(evaluation.record["created"])[:10],
    ]
    return " · ".join(facts)
