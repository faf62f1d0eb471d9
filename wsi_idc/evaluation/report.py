"""Evaluate a predictor, and write the tables, figures and page of the evaluation."""

import logging
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from wsi_idc.core.constants import DEFAULT_REPORT, EVALUATION_PAGE
from wsi_idc.core.metric_table import HEADLINE_METRICS, METRIC_TABLE
from wsi_idc.core.text import count
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.cam_quality import cam_quality, cam_quality_chart
from wsi_idc.evaluation.charts import BORDER_TITLES, CHARTS
from wsi_idc.evaluation.evaluate import choose_patients, evaluate
from wsi_idc.evaluation.gallery import GALLERIES
from wsi_idc.evaluation.novelty import novelty_chart
from wsi_idc.evaluation.results import Evaluation, write_evaluation
from wsi_idc.evaluation.robustness import robustness, robustness_chart
from wsi_idc.inference.predictor import Predictor
from wsi_idc.metrics.classification import records
from wsi_idc.plotting.html import remove_figures, write_figures, write_page
from wsi_idc.plotting.page_links import link_patients, model_key
from wsi_idc.training.logger import draw_curves
from wsi_idc.training.runs import Run

logger = logging.getLogger(__name__)

LEARNING_CURVES = "learning_curves"
_NOVELTY, _ROBUSTNESS, _CAM = "novelty", "robustness", "cam_quality"
FIGURE_NAMES = (*CHARTS, *GALLERIES, LEARNING_CURVES, _NOVELTY, _ROBUSTNESS, _CAM)
_HEADLINE = ("auc", "average_precision", "f1", "balanced_accuracy", *HEADLINE_METRICS[4:])
_BY_BORDER = ("auc", "balanced_accuracy", "f1", "sensitivity", "specificity", "ppv", "prevalence")


def evaluate_into(
    folder: Path,
    predictor: Predictor,
    pack: Pack,
    *,
    split: str,
    allow_seen: bool = False,
    with_report: bool = True,
    with_robustness: bool = False,
    with_cam: bool = False,
    **settings: Any,
) -> tuple[Evaluation, Path]:
    """Evaluate a predictor, and write its results; return the evaluation and ``folder``.

    Args:
        folder: Folder of the results.
        predictor: Predictor to evaluate.
        pack: Pack with the patches to evaluate.
        split: Group of patients, one of the values that ``choose_patients`` accepts.
        allow_seen: Accept patients that a checkpoint was trained on.
        with_report: Write figures and report.html too.
        with_robustness: Evaluate changed patches too, as ``robustness`` does.
        with_cam: Measure the CAMs too, as ``cam_quality`` does.
        settings: Further keyword arguments of ``evaluate``.

    Raises:
        CheckpointError: A checkpoint does not fit the data.
        DataError: The group has no patient, no patch has a known label, or a checkpoint was trained
            on one of the patients and ``allow_seen`` is False.
    """
    patients = choose_patients(predictor, pack, split, allow_seen=allow_seen)
    evaluation = evaluate(predictor, pack, patients, split=split, **settings)
    options = {name: settings[name] for name in ("device_config", "batch_size")}
    if with_cam:
        measured = cam_quality(predictor, pack, patients, **options)
        evaluation = replace(evaluation, cam=measured)
    if with_robustness:
        table = robustness(predictor, pack, patients, **options)
        evaluation = replace(evaluation, robustness=table)
    # Remove the page and the figures of an earlier evaluation: they show other numbers.
    (folder / EVALUATION_PAGE).unlink(missing_ok=True)
    remove_figures(FIGURE_NAMES, folder)
    write_evaluation(evaluation, folder)
    if with_report:
        write_report(evaluation, folder, pack=pack, history=read_history(predictor))
    return evaluation, folder


def read_history(predictor: Predictor) -> list[dict[str, Any]] | None:
    """Read the training history of a checkpoint: one record per epoch.

    If the predictor is an ensemble, or if the checkpoint is not the best.pt of a run, return None.
    """
    source = predictor.checkpoints[0].source
    if len(predictor.checkpoints) > 1 or source is None:
        return None
    run = Run(source.parent)
    return run.read_history() if source == run.best else None


def write_report(
    evaluation: Evaluation, out: Path, *, pack: Pack, history: list[dict[str, Any]] | None
) -> None:
    """Write figures/ and the self-contained report.html into the folder ``out``.

    ``pack`` is the evaluated pack. ``history`` has one record per epoch of the training; it is
    None if the history is unknown.
    """
    start = time.monotonic()
    drawings: dict[str, Callable[[], Figure]] = {
        name: partial(draw, evaluation) for name, draw in CHARTS.items()
    }
    drawings |= {name: partial(draw, evaluation, pack) for name, draw in GALLERIES.items()}
    if evaluation.novelty is not None:
        drawings[_NOVELTY] = partial(novelty_chart, evaluation)
    if evaluation.robustness is not None:
        drawings[_ROBUSTNESS] = partial(robustness_chart, evaluation.robustness)
    if evaluation.cam is not None:
        drawings[_CAM] = partial(cam_quality_chart, evaluation.cam)
    if history:
        best_epoch = evaluation.record["method"]["metrics"].get("epoch")
        drawings[LEARNING_CURVES] = partial(draw_curves, history, best_epoch=best_epoch)
    uris, page = write_figures(drawings, out), out / EVALUATION_PAGE
    write_evaluation_page(evaluation, page, uris)
    link_patients(page, DEFAULT_REPORT, model_key(evaluation.record["method"]))
    seconds = time.monotonic() - start
    logger.info("report: wrote %s and %s in %.1f s", count(len(uris), "figure"), page, seconds)


def write_evaluation_page(evaluation: Evaluation, path: Path, uris: Mapping[str, str]) -> None:
    """Write the page of an evaluation as the HTML file ``path``.

    ``uris`` has a data URI for each name of a figure. Figures without a URI are left out.
    """
    final, raw, record = evaluation.final, evaluation.raw, evaluation.record
    method = record["method"]
    members = method.get("ensemble") or [method]
    name = f"{members[0]['architecture']} ({members[0]['checkpoint'] or 'not in a file'})"
    facts = [
        f"{evaluation.split} patients",
        count(evaluation.num_patients, "patient"),
        count(evaluation.num_patches, "patch", "patches"),
        *["8 views per patch"] * method["tta"],
        *["smoothed"] * method["smooth"],
        str(record["created"])[:10],
    ]
    write_page(
        path,
        "evaluation/templates/report.html",
        evaluation=evaluation,
        final=final,
        columns={"value": final} if raw is None else {"smoothed": final, "not smoothed": raw},
        record=record,
        command=shlex.join(map(str, record["command"])),
        members=members,
        name=name if len(members) == 1 else f"an ensemble of {len(members)}, first {name}",
        facts=" · ".join(facts),
        headline={metric: METRIC_TABLE[metric] for metric in _HEADLINE},
        uris=uris,
        border={BORDER_TITLES[key]: value for key, value in evaluation.by_border.items()},
        border_metrics=_BY_BORDER,
        by_novelty=[] if evaluation.novelty is None else records(evaluation.novelty),
        patients=records(evaluation.patients),
        slides=[] if evaluation.slides is None else records(evaluation.slides),
    )
