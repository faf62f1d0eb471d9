"""An evaluation as people read it: tables, figures and one page."""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from wsi_idc.data.pack import Pack
from wsi_idc.evaluation import charts as evaluation_charts
from wsi_idc.evaluation import patient_charts
from wsi_idc.evaluation.evaluate import choose_patients, evaluate
from wsi_idc.evaluation.evaluation_files import PAGE, evaluation_folder, write_evaluation
from wsi_idc.evaluation.gallery import GALLERIES
from wsi_idc.evaluation.report_page import CAPTIONS, write_evaluation_page
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.inference.predictor import Predictor
from wsi_idc.plotting.html import remove_figures, write_figures
from wsi_idc.training.logger import draw_curves
from wsi_idc.training.runs import Run

logger = logging.getLogger(__name__)


def evaluate_into(
    folder: Path | None,
    method: Predictor,
    pack: Pack,
    *,
    split: str,
    allow_seen: bool = False,
    with_report: bool = True,
    **how: Any,
) -> tuple[Evaluation, Path]:
    """Evaluate and write all of it into ``folder``, its default place where None; return both.

    Args:
        folder: Where to.
        method: What is evaluated.
        pack: The data.
        split: Which patients, as ``choose_patients`` has it.
        allow_seen: Let it be evaluated on patients that a checkpoint was trained on.
        with_report: Write figures and report.html too.
        how: What else ``evaluate`` takes.

    Raises:
        CheckpointError: A checkpoint does not fit the data.
        DataError: There is nothing to evaluate, or a checkpoint was trained on it.
    """
    patients = choose_patients(method, pack, split, allow_seen=allow_seen)
    evaluation = evaluate(method, pack, patients, split=split, **how)
    folder = folder or evaluation_folder(method, split)
    # A page of an earlier evaluation must not stand beside the numbers of this one.
    (folder / PAGE).unlink(missing_ok=True)
    remove_figures(CAPTIONS, folder)
    write_evaluation(evaluation, folder)
    if with_report:
        write_report(evaluation, folder, pack=pack, history=_history_of(method))
    return evaluation, folder


def write_report(
    evaluation: Evaluation, out: Path, *, pack: Pack, history: list[dict[str, Any]] | None
) -> None:
    """Write figures/ and report.html, which needs no other file, into the folder ``out``.

    Args:
        evaluation: What it shows.
        out: Where to.
        pack: The data that was evaluated.
        history: One record an epoch of the training, None where it is not known.
    """
    start = time.monotonic()
    drawings: dict[str, Callable[[], Figure]] = {
        name: partial(draw, evaluation)
        for name, draw in (evaluation_charts.CHARTS | patient_charts.CHARTS).items()
    }
    drawings |= {name: partial(draw, evaluation, pack) for name, draw in GALLERIES.items()}
    if history:
        best = evaluation.record["method"]["metrics"].get("epoch")
        drawings["learning_curves"] = partial(draw_curves, history, best_epoch=best)
    uris = write_figures(drawings, out)
    write_evaluation_page(evaluation, out / PAGE, uris)
    seconds = time.monotonic() - start
    logger.info("report: %d figures and %s in %.1f s", len(uris), out / PAGE, seconds)


def _history_of(method: Predictor) -> list[dict[str, Any]] | None:
    """Return the epochs of the training that gave the one checkpoint, None where not known."""
    first = method.checkpoints[0].source
    if len(method.checkpoints) > 1 or first is None:
        return None
    run = Run(first.parent)
    return run.read_history() if first == run.best else None
