"""Page of an evaluation: the values that its template shows."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_idc.core.metric_table import HEADLINE_METRICS, METRIC_TABLE, TITLES
from wsi_idc.evaluation.charts import BORDER_TITLES
from wsi_idc.evaluation.results import Evaluation, MetricSet
from wsi_idc.metrics.classification import records
from wsi_idc.plotting.html import write_page
from wsi_idc.plotting.number_format import count, interval, number, percent

_BORDER_METRICS = (
    "auc",
    "balanced_accuracy",
    "f1",
    "sensitivity",
    "specificity",
    "ppv",
    "prevalence",
)
_GROUPS = {
    "test": "test patients of the checkpoint's split",
    "val": "val patients of the checkpoint's split",
    "train": "patients that it was trained on",
    "unseen": "patients in no checkpoint's train or val",
    "all": "all patients of the data",
}


def write_evaluation_page(evaluation: Evaluation, path: Path, uris: Mapping[str, str]) -> None:
    """Write the page of an evaluation.

    Args:
        evaluation: The evaluation.
        path: The file to write.
        uris: Figures as data URIs, by name; the page leaves out those that are missing.
    """
    final, raw = evaluation.final, evaluation.raw
    columns = {"value": final} if raw is None else {"smoothed": final, "not smoothed": raw}
    write_page(
        path,
        "evaluation/templates/report.html",
        name=_predictor_name(evaluation),
        facts=_facts(evaluation),
        headline=[_headline(final, name) for name in HEADLINE_METRICS],
        has_intervals=evaluation.num_patients > 1,
        final=final,
        columns=columns,
        notes=evaluation.notes,
        provenance=describe_provenance(evaluation),
        uris=uris,
        border={BORDER_TITLES[key]: value for key, value in evaluation.by_border.items()},
        border_metrics=_BORDER_METRICS,
        patient_summary=evaluation.patient_summary,
        patients=records(evaluation.patients),
    )


def _headline(final: MetricSet, name: str) -> dict[str, str]:
    value, details = final.metrics[name], interval(*final.intervals[name])
    if name == "prevalence":
        return {"title": TITLES[name], "value": percent(value), "details": "of the patches"}
    if METRIC_TABLE[name].depends_on_prevalence:
        prevalence = f"at {percent(final.metrics['prevalence'])} IDC"
        details = f"{details}, {prevalence}" if details else prevalence
    return {"title": TITLES[name], "value": number(value), "details": details}


def _members(evaluation: Evaluation) -> list[Mapping[str, Any]]:
    """Return the descriptions of the predictor's checkpoints."""
    method = evaluation.record["method"]
    return method.get("ensemble") or [method]


def _checkpoint_name(member: Mapping[str, Any]) -> str:
    return member["checkpoint"] or "not in a file"


def _predictor_name(evaluation: Evaluation) -> str:
    members = _members(evaluation)
    first = f"{members[0]['architecture']} ({_checkpoint_name(members[0])})"
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


def describe_provenance(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Describe predictor, data, settings and program as pairs of a name and a text."""
    record, members = evaluation.record, _members(evaluation)
    method, num_unknown = record["method"], evaluation.num_unknown
    left_out = f"; {num_unknown:,} of unknown label left out" if num_unknown else ""
    group = _GROUPS.get(evaluation.split, evaluation.split)
    pairs = [
        ("Patients", f"{evaluation.split}: {group}, {evaluation.num_patients:,}"),
        ("Patches", f"{evaluation.num_patches:,}{left_out}"),
    ]
    for number_, member in enumerate(members, start=1):
        title = "Checkpoint" if len(members) == 1 else f"Checkpoint {number_}"
        spec = member["input"]
        resized = f", resized to {spec['input_px']} px" if spec["input_px"] else ""
        text = (
            f"{_checkpoint_name(member)}, {member['architecture']}, "
            f"patches of {spec['patch_px']} px at {spec['mpp']:g} µm/px{resized}"
        )
        pairs += [(title, text), ("SHA-256", str(member["sha256"] or "none"))]
    threshold = number(evaluation.final.threshold, digits=4)
    origin = "set on val patients when it was trained"
    if len(members) > 1:
        pairs.append(("Ensemble", f"mean probability of {len(members)} checkpoints"))
        origin = "mean of the checkpoints' thresholds, each set on its val patients"
    if evaluation.raw is not None:
        origin += ", for smoothed probabilities"
    commit = f" (commit {str(record['git_commit'])[:12]})" if record["git_commit"] else ""
    versions = {"Python": record["python"], **record["libraries"]}
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    pairs += [
        ("Views", "mean of 8 flips and quarter turns (TTA)" if method["tta"] else "one per patch"),
        ("Smoothing", "with the neighbors on the grid" if method["smooth"] else "no"),
        ("Threshold", f"{threshold}, {origin}"),
        ("Data", f"fingerprint {record['data_fingerprint']}"),
        (
            "Intervals",
            f"95 %, {record['num_resamples']:,} resamples of patients, seed {record['seed']}",
        ),
        (
            "Program",
            f"{record['program']} {record['version']}{commit}, {libraries}, {record['platform']}",
        ),
        ("Date", str(record["created"])),
        ("Command", shlex.join(map(str, record["command"]))),
    ]
    return pairs
