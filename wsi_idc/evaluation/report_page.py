"""What the page of an evaluation says, in words and rows."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_idc.core.metric_table import TITLES
from wsi_idc.evaluation.charts import BORDER_TITLES
from wsi_idc.evaluation.results import Evaluation, MetricSet
from wsi_idc.metrics import classification as measure
from wsi_idc.plotting.html import write_page
from wsi_idc.plotting.number_format import count, interval, number, percent

_HEADLINE = (
    "auc",
    "average_precision",
    "f1",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "ece",
    "prevalence",
)
_DEPENDS_ON_PREVALENCE = ("f1", "average_precision")
_BORDER_METRICS = (
    "auc",
    "balanced_accuracy",
    "f1",
    "sensitivity",
    "specificity",
    "ppv",
    "prevalence",
)
_ROLES = {
    "test": "test patients of the checkpoint's split",
    "val": "val patients of the checkpoint's split",
    "train": "patients that it was trained on",
    "unseen": "patients in no one's train or val",
    "all": "all patients of the data",
}
# Title, how to read it, and whether it takes the whole width.
CAPTIONS: dict[str, tuple[str, str, str]] = {
    "confusion_matrix": (
        "Confusion matrix",
        "Patches by label (rows) and call (columns); the shares of a row add up to 100 %.",
        "",
    ),
    "probabilities": (
        "Probabilities by label",
        "The less the two overlap, the better the labels are told apart; patches right of the "
        "dashed threshold are called IDC.",
        "",
    ),
    "roc_and_pr": (
        "ROC and precision-recall",
        "Each curve runs through all thresholds, the orange mark is the one in use. The band holds "
        "95 % of the curves of resampled patients. The PR curve depends on prevalence, the ROC "
        "curve does not.",
        "full",
    ),
    "reliability": (
        "Reliability diagram",
        "On the dotted line a probability means what it says; below it, IDC is rarer than said. "
        "Lines: 95 % over patients, none where one patient alone is in the bin.",
        "",
    ),
    "border": (
        "Distance to the label border",
        "If only patches at the border are missed, the labels' uncertainty explains it; patches "
        "inside a region have no such excuse. Lines: 95 % over patients.",
        "",
    ),
    "patients": (
        "Patient by patient",
        "One mark a patient, the weakest to the left and named. Grey: mean of the patients and its "
        "95 % interval. A few patches give a patient a figure by luck.",
        "full",
    ),
    "area_fraction": (
        "IDC fraction of each patient",
        "Left: on the dotted line the called region is as large as the labelled one. Right: the "
        "difference; between the dashed limits of agreement 95 % of patients are expected.",
        "full",
    ),
    "false_positives": (
        "Surest false positives",
        "Labelled non-IDC but called IDC, the largest probability first. Border: patches between "
        "it and the nearest of the other label. A frame marks the patch where its neighbours are "
        "shown. Wrong labels show here too.",
        "full",
    ),
    "false_negatives": (
        "Surest false negatives",
        "Labelled IDC but not called so, the smallest probability first. Border: patches between "
        "it and the nearest of the other label. A frame marks the patch where its neighbours are "
        "shown. Wrong labels show here too.",
        "full",
    ),
    "learning_curves": (
        "Learning curves",
        "How the training went that gave the checkpoint; val patients chose the epoch.",
        "full",
    ),
}


def write_evaluation_page(evaluation: Evaluation, path: Path, uris: Mapping[str, str]) -> None:
    """Write the page of an evaluation.

    Args:
        evaluation: What it shows.
        path: Where to.
        uris: Figure of each name in ``CAPTIONS``, as far as there are, as data URIs.
    """
    columns = [{"name": "value", "judged": evaluation.judged}]
    if evaluation.raw is not None:
        columns = [
            {"name": "smoothed", "judged": evaluation.judged},
            {"name": "not smoothed", "judged": evaluation.raw},
        ]
    write_page(
        path,
        "evaluation/templates/report.html",
        name=_name(evaluation),
        facts=_facts(evaluation),
        headline=[_headline(evaluation.judged, name) for name in _HEADLINE],
        below_headline=_below_headline(evaluation),
        judged=evaluation.judged,
        columns=columns,
        notes=evaluation.notes,
        provenance=provenance_in_words(evaluation),
        figures=captioned(uris),
        border=[
            {
                "name": BORDER_TITLES[distance],
                "patches": sum(vars(one.confusion).values()),
                "judged": one,
            }
            for distance, one in evaluation.by_border.items()
        ],
        border_metrics=_BORDER_METRICS,
        regions=evaluation.regions,
        patients=measure.records(evaluation.patients),
    )


def captioned(uris: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the figures that there are, in the order in which they are read."""
    return [
        {"uri": uris[name], "title": title, "caption": caption, "width": width}
        for name, (title, caption, width) in CAPTIONS.items()
        if name in uris
    ]


def _headline(judged: MetricSet, name: str) -> dict[str, str]:
    value, limits = judged.metrics[name], interval(*judged.intervals[name])
    beside = limits
    if name == "prevalence":
        return {"title": TITLES[name], "value": percent(value), "beside": "of the patches"}
    if name in _DEPENDS_ON_PREVALENCE:
        at = f"at {percent(judged.metrics['prevalence'])} IDC"
        beside = f"{limits}, {at}" if limits else at
    return {"title": TITLES[name], "value": number(value), "beside": beside}


def _below_headline(evaluation: Evaluation) -> str:
    threshold = number(evaluation.judged.threshold)
    drawn = evaluation.num_patients > 1
    return ("Below each its 95 % interval by bootstrap over patients. " if drawn else "") + (
        f"Calls are at the threshold {threshold}."
    )


def _method(evaluation: Evaluation) -> Mapping[str, Any]:
    found: Mapping[str, Any] = evaluation.record["method"]
    return found


def _members(evaluation: Evaluation) -> list[Mapping[str, Any]]:
    method = _method(evaluation)
    return method.get("ensemble") or [method]


def _name(evaluation: Evaluation) -> str:
    members = _members(evaluation)
    first = f"{members[0]['architecture']} ({members[0]['checkpoint'] or 'not in a file'})"
    if len(members) == 1:
        return first
    return f"an ensemble of {len(members)}, first {first}"


def _facts(evaluation: Evaluation) -> str:
    method = _method(evaluation)
    ways = ["8 views a patch"] * method["tta"] + ["smoothed"] * method["smooth"]
    facts = [
        f"{evaluation.split} patients",
        count(evaluation.num_patients, "patient", "patients"),
        count(evaluation.num_patches, "patch", "patches"),
        *ways,
        str(evaluation.record["created"])[:10],
    ]
    return " · ".join(facts)


def provenance_in_words(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return what was evaluated on what, as pairs of a word and a text."""
    record, method, members = evaluation.record, _method(evaluation), _members(evaluation)
    left_out = ""
    if evaluation.num_unknown:
        left_out = f"; {evaluation.num_unknown:,} of unknown label left out"
    pairs = [
        (
            "Patients",
            f"{evaluation.split}: {_ROLES.get(evaluation.split, evaluation.split)}, "
            f"{evaluation.num_patients:,}",
        ),
        ("Patches", f"{evaluation.num_patches:,}{left_out}"),
    ]
    for place, one in enumerate(members, start=1):
        which = "Checkpoint" if len(members) == 1 else f"Checkpoint {place}"
        text = f"{one['checkpoint'] or 'not in a file'}, {one['architecture']}, {_input(one)}"
        pairs += [(which, text), ("SHA-256", str(one["sha256"] or "none"))]
    if len(members) > 1:
        pairs.append(("Ensemble", f"mean probability of {len(members)} checkpoints"))
    pairs += [
        ("Views", "mean of 8 flips and quarter turns (TTA)" if method["tta"] else "one a patch"),
        ("Smoothing", "by the neighbours on the grid" if method["smooth"] else "no"),
        ("Threshold", _threshold_in_words(evaluation, len(members))),
        ("Data", f"fingerprint {record['data_fingerprint']}"),
        (
            "Intervals",
            f"95 %, {record['num_resamples']:,} resamples of patients, seed {record['seed']}",
        ),
        ("Program", _program(record)),
        ("Date", str(record["created"])),
        ("Command", shlex.join(map(str, record["command"]))),
    ]
    return pairs


def _input(one: Mapping[str, Any]) -> str:
    spec = one["input"]
    text = f"patches of {spec['patch_px']} px at {spec['mpp']:g} µm/px"
    return text + (f", resized to {spec['input_px']} px" if spec["input_px"] else "")


def _threshold_in_words(evaluation: Evaluation, num_members: int) -> str:
    where = "set on val patients when it was trained"
    if num_members > 1:
        where = "mean of the checkpoints' own, each set on its val patients"
    of = "" if evaluation.raw is None else ", for smoothed probabilities"
    return f"{number(evaluation.judged.threshold, digits=4)}, {where}{of}"


def _program(record: Mapping[str, Any]) -> str:
    commit = f" (commit {str(record['git_commit'])[:12]})" if record["git_commit"] else ""
    libraries = ", ".join(f"{name} {version}" for name, version in record["libraries"].items())
    return (
        f"{record['program']} {record['version']}{commit}, Python {record['python']}, "
        f"{libraries}, {record['platform']}"
    )
