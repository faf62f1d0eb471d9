"""An evaluation as people read it: tables, figures and one page."""

from pathlib import Path
from typing import Any

from wsi_idc.data.pack import Pack
from wsi_idc.learn.evaluate import (
    Evaluation,
    choose_patients,
    evaluate,
    evaluation_folder,
    write_evaluation,
)
from wsi_idc.learn.method import Method


def evaluate_into(
    folder: Path | None,
    method: Method,
    pack: Pack,
    *,
    split: str,
    allow_seen: bool = False,
    with_report: bool = True,
    **how: Any,
) -> tuple[Evaluation, Path]:
    """Evaluate and write all of it into ``folder``, its default place where None; return both.

    Raises:
        CheckpointError: A checkpoint does not fit the data.
        DataError: There is nothing to evaluate, or a checkpoint was trained on it.
    """
    patients = choose_patients(method, pack, split, allow_seen=allow_seen)
    evaluation = evaluate(method, pack, patients, split=split, **how)
    folder = folder or evaluation_folder(method, split)
    write_evaluation(evaluation, folder)
    return evaluation, folder
