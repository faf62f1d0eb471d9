"""How far the tasks of a job are, from what they have left on the disk."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_idc.core.constants import DEFAULT_MAPS
from wsi_idc.core.errors import CheckpointError, RunError, WsiIdcError
from wsi_idc.core.locks import is_held
from wsi_idc.data.open_data import default_data, find_pack
from wsi_idc.data.patient_list import read_patients
from wsi_idc.evaluation.results import (
    evaluation_name,
    folder_in_run,
    is_evaluation,
    numbered_folders,
)
from wsi_idc.jobs.job import MAP, TRAIN, Job, Task, matches
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.sharding import parse_shard, shard, sizes_of_patients, sizes_of_slides
from wsi_idc.search.config import SEARCH, read_search, train_types
from wsi_idc.slides.manifest import read_manifest, rows_from_files
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.resolve_config import is_weights_file, resolve
from wsi_idc.training.runs import Run, describe_changes

NOT_BEGUN, RUNNING, STOPPED, FINISHED = "not begun", "running", "stopped", "finished"
PARTLY, UNKNOWN, OTHER = "partly done", "unknown", "other settings"
# What each of the other commands leaves when it has come to its end.
_RESULTS = {
    "prepare": ("data/idc.h5", ""),
    "explore": ("explore", "summary.json"),
    "report": ("report", "index.html"),
}


@dataclass(frozen=True)
class TaskStatus:
    """How far one task is.

    Attributes:
        number: Of the task, from 1.
        out: Folder or file of its results.
        state: "not begun", "running", "stopped" (the same command goes on), "partly done",
            "finished", "other settings" (the command would refuse what is there) or "unknown".
        detail: In words.
    """

    number: int
    out: str
    state: str
    detail: str = ""


def status_of(job: Job) -> list[TaskStatus]:
    """Return how far each task of a job is; the processes of a search are one."""
    if job.command == SEARCH:
        return [_of_search(job)]
    return [_of_task(number, task) for number, task in enumerate(job.tasks, start=1)]


def _of_task(number: int, task: Task) -> TaskStatus:
    if task.command == TRAIN:
        run = Run(Path(task.settings["out"]))
        state, detail = _of_run(run)
        if state not in (NOT_BEGUN, UNKNOWN) and (changed := _changed(run, task.settings)):
            state, detail = OTHER, changed
        return TaskStatus(number, str(run.folder), state, detail)
    if task.command == MAP:
        return _of_map(number, task)
    if task.command in _RESULTS:
        folder, name = _RESULTS[task.command]
        out = Path(task.settings.get("out", folder))
        state = FINISHED if (out / name if name else out).exists() else NOT_BEGUN
        return TaskStatus(number, str(out), state)
    if task.command == "eval" and task.settings.get("runs"):
        return _of_eval(number, task)
    return TaskStatus(number, "", UNKNOWN, f"see what wsi-idc {task.command} has written")


def _of_eval(number: int, task: Task) -> TaskStatus:
    given, runs = task.settings, list(dict.fromkeys(map(Path, task.plain_arguments())))
    out = given.get("out")
    name = evaluation_name(
        given.get("split", "test"), tta=bool(given.get("tta")), smooth=bool(given.get("smooth"))
    )
    folders = (
        numbered_folders(runs, Path(out)) if out else [folder_in_run(run, name) for run in runs]
    )
    there = sum(is_evaluation(folder) for folder in folders)
    state = FINISHED if there == len(runs) else PARTLY if there else NOT_BEGUN
    return TaskStatus(
        number, out or f"eval-{name}", state, f"{there} of {len(runs)} runs are evaluated"
    )


def _of_run(run: Run) -> tuple[str, str]:
    """Return state and detail of a training."""
    if not run.exists():
        return NOT_BEGUN, ""
    try:
        record = run.read()
    except RunError as error:
        return UNKNOWN, str(error)
    epochs = run.read_history() or []
    if record.get("status") == "finished":
        best = record.get("best")
        epoch = best.get("epoch") if isinstance(best, dict) else None
        return FINISHED, "" if epoch is None else f"best epoch {epoch}"
    detail = "before the end of its first epoch"
    if epochs:
        last = epochs[-1]
        asked = record.get("asked")
        wanted = asked.get("epochs") if isinstance(asked, dict) else None
        detail = f"{last['epoch']:.0f}{f' of {wanted}' if wanted else ''} epochs"
        if "val_average_precision" in last:
            detail += f", val AP {last['val_average_precision']:.4f}"
    return (RUNNING if is_held(run.folder / ".lock") else STOPPED), detail


def _changed(run: Run, settings: Mapping[str, Any]) -> str:
    """Return in words how a run differs from a training's settings, as far as these say."""
    config = TrainConfig(**{key: settings[key] for key in train_types() if key in settings})
    try:
        wanted = resolve(config).training_settings
    except CheckpointError as error:
        return str(error)
    if is_weights_file(config.weights):  # of which a run keeps the SHA-256
        del wanted["weights"]
    if config.split == "auto":
        del wanted["split"]
    asked = run.read().get("asked")
    before = asked if isinstance(asked, dict) else {}
    return describe_changes({key: before.get(key) for key in wanted}, wanted)


def _of_search(job: Job) -> TaskStatus:
    spec = read_search(job.path)
    task = job.tasks[0]
    folder = Path(task.settings["out"])
    if not (folder / "search.json").exists():
        return TaskStatus(1, str(folder), NOT_BEGUN, f"{spec.num_trials} trials")
    runs = [Run(path) for path in sorted(folder.glob("trial-*"))]
    states = [_of_run(run)[0] for run in runs]
    finished, running = states.count(FINISHED), states.count(RUNNING)
    detail = f"{finished} of {spec.num_trials} trials finished, {running} running"
    if unknown := states.count(UNKNOWN):
        detail += f", {unknown} unknown"
    if not running and _num_settled(folder / "trials.csv") >= spec.num_trials:
        return TaskStatus(1, str(folder), FINISHED, f"{finished} trials finished; see trials.csv")
    return TaskStatus(1, str(folder), RUNNING if running else STOPPED, detail)


def _num_settled(table: Path) -> int:
    """Return how many trials of a search's table have come to an end; 0 where it is no table."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            states = [row.get("state") for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return 0
    return sum(state in ("complete", "pruned", "failed") for state in states)


def _of_map(number: int, task: Task) -> TaskStatus:
    out = Path(task.settings.get("out", DEFAULT_MAPS))
    try:
        sizes = _sizes(task.settings)
    except WsiIdcError as error:
        return TaskStatus(number, str(out), UNKNOWN, str(error))
    if sizes is None:
        there = len(list(out.glob("*.h5")))
        return TaskStatus(number, str(out), UNKNOWN, f"{there} files; the data are not packed yet")
    names = list(sizes)
    if "shard" in task.settings:
        names = shard(sizes, *parse_shard(task.settings["shard"]))
    there = sum(map_path(out, name).exists() for name in names)
    state = FINISHED if there == len(names) else PARTLY if there else NOT_BEGUN
    if not sizes:
        return TaskStatus(number, str(out), UNKNOWN, "the job names nothing to map")
    return TaskStatus(number, str(out), state, f"{there} of {len(names)} maps are there")


def _sizes(settings: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the size of each map's work by patient, None where that would take long to know."""
    if "manifest" in settings:
        return sizes_of_slides(read_manifest(Path(settings["manifest"])))
    if "slide" in settings:
        paths = [*settings["slide"], *settings.get("files", ())]
        return sizes_of_slides(
            rows_from_files([Path(path) for one in paths for path in matches(one)])
        )
    pack = find_pack(Path(settings["data"]) if "data" in settings else default_data())
    if pack is None:
        return None
    listed = read_patients(Path(settings["patients_file"])) if "patients_file" in settings else []
    named = [*settings.get("patient", ()), *listed]
    return sizes_of_patients(pack, pack.patients if settings.get("all") else named)
