"""Report the progress of the tasks of a job, read from the files that the tasks have written."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_idc.core.errors import CheckpointError, RunError, WsiIdcError
from wsi_idc.core.locks import is_held
from wsi_idc.data.open_data import default_data, find_pack
from wsi_idc.data.splits import read_patients
from wsi_idc.evaluation.results import (
    evaluation_name,
    folder_in_run,
    is_evaluation,
    numbered_folders,
)
from wsi_idc.jobs.job import MAP, TRAIN, Job, Task
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.plan import parse_shard, shard, sizes_of_patients, sizes_of_slides
from wsi_idc.search.config import SEARCH, read_search, train_types
from wsi_idc.slides.manifest import read_manifest, rows_from_files
from wsi_idc.training.config import TrainConfig, is_weights_file, resolve
from wsi_idc.training.runs import Run, describe_changes

NOT_BEGUN, RUNNING, STOPPED, FINISHED = "not begun", "running", "stopped", "finished"
PARTLY, UNKNOWN, OTHER = "partly done", "unknown", "other settings"
# Command to the last file that the command writes, relative to --out; "" means --out itself.
_LAST_FILES = {"prepare": "", "explore": "summary.json", "report": "index.html"}


@dataclass(frozen=True)
class TaskStatus:
    """Progress of one task.

    Attributes:
        number: Number of the task; the first task has number 1.
        out: Folder or file with the results of the task.
        state: "not begun", "running", "stopped" (the same command can continue the task), "partly
            done", "finished", "other settings" (the existing files were made with other settings,
            and the command would reject these files) or "unknown".
        detail: Description of the progress, such as "3 of 10 epochs".
    """

    number: int
    out: str
    state: str
    detail: str = ""


def status_of(job: Job) -> list[TaskStatus]:
    """Return the progress of each task of a job; a search counts as one task."""
    if job.command == SEARCH:
        return [_search_status(job)]
    return [_task_status(number, task) for number, task in enumerate(job.tasks, start=1)]


def _task_status(number: int, task: Task) -> TaskStatus:
    values = task.values
    if task.command == TRAIN:
        run = Run(values["out"])
        state, detail = _run_status(run)
        if state not in (NOT_BEGUN, UNKNOWN) and (changes := _changes(run, values)):
            state, detail = OTHER, changes
        return TaskStatus(number, str(run.folder), state, detail)
    if task.command == MAP:
        return _map_status(number, values)
    if task.command in _LAST_FILES:
        last_file = values["out"] / _LAST_FILES[task.command]
        state = FINISHED if last_file.exists() else NOT_BEGUN
        return TaskStatus(number, str(values["out"]), state)
    if task.command == "eval" and values["runs"]:
        return _eval_status(number, task)
    return TaskStatus(number, "", UNKNOWN, f"see the files of wsi-idc {task.command}")


def _eval_status(number: int, task: Task) -> TaskStatus:
    values, runs = task.values, list(dict.fromkeys(map(Path, task.plain_arguments())))
    name = evaluation_name(values["split"], tta=values["tta"], smooth=values["smooth"])
    out = values["out"]
    folders = numbered_folders(runs, out) if out else [folder_in_run(run, name) for run in runs]
    num_done = sum(map(is_evaluation, folders))
    detail = f"{num_done} of {len(runs)} runs are evaluated"
    return TaskStatus(number, str(out or f"eval-{name}"), _part_state(num_done, len(runs)), detail)


def _part_state(num_done: int, num_all: int) -> str:
    return FINISHED if num_done == num_all else PARTLY if num_done else NOT_BEGUN


def _run_status(run: Run) -> tuple[str, str]:
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
        config = record.get("asked")
        num_epochs = config.get("epochs") if isinstance(config, dict) else None
        detail = f"{last['epoch']:.0f}{f' of {num_epochs}' if num_epochs else ''} epochs"
        if "val_average_precision" in last:
            detail += f", val AP {last['val_average_precision']:.4f}"
    return (RUNNING if is_held(run.folder / ".lock") else STOPPED), detail


def _changes(run: Run, values: Mapping[str, Any]) -> str:
    """Describe the differences between a run and the settings of a training; empty if equal."""
    config = TrainConfig(**{key: values[key] for key in train_types()})
    try:
        expected = resolve(config).training_settings
    except CheckpointError as error:
        return str(error)
    if is_weights_file(config.weights):  # a run stores the file's SHA-256, not its path
        del expected["weights"]
    if config.split == "auto":
        del expected["split"]
    asked = run.read().get("asked")
    stored = asked if isinstance(asked, dict) else {}
    return describe_changes({key: stored.get(key) for key in expected}, expected)


def _search_status(job: Job) -> TaskStatus:
    spec, folder = read_search(job.path), job.tasks[0].values["out"]
    if not (folder / "search.json").exists():
        return TaskStatus(1, str(folder), NOT_BEGUN, f"{spec.num_trials} trials")
    states = [_run_status(Run(path))[0] for path in sorted(folder.glob("trial-*"))]
    finished, running = states.count(FINISHED), states.count(RUNNING)
    detail = f"{finished} of {spec.num_trials} trials finished, {running} running"
    if unknown := states.count(UNKNOWN):
        detail += f", {unknown} unknown"
    if not running and _num_ended(folder / "trials.csv") >= spec.num_trials:
        return TaskStatus(1, str(folder), FINISHED, f"{finished} trials finished; see trials.csv")
    return TaskStatus(1, str(folder), RUNNING if running else STOPPED, detail)


def _num_ended(table: Path) -> int:
    """Count the ended trials in the table of a search; 0 if the table cannot be read."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            states = [row.get("state") for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return 0
    return sum(state in ("complete", "pruned", "failed") for state in states)


def _map_status(number: int, values: Mapping[str, Any]) -> TaskStatus:
    out = values["out"]
    try:
        sizes = _map_sizes(values)
    except WsiIdcError as error:
        return TaskStatus(number, str(out), UNKNOWN, str(error))
    if sizes is None:
        num_files = len(list(out.glob("*.h5")))
        detail = f"{num_files} files; the data are not packed yet"
        return TaskStatus(number, str(out), UNKNOWN, detail)
    if not sizes:
        return TaskStatus(number, str(out), UNKNOWN, "the job names nothing to map")
    names = shard(sizes, *parse_shard(values["shard"])) if values["shard"] else list(sizes)
    num_done = sum(map_path(out, name).exists() for name in names)
    detail = f"{num_done} of {len(names)} maps are there"
    return TaskStatus(number, str(out), _part_state(num_done, len(names)), detail)


def _map_sizes(values: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the size of each patient's input, None if the data must be packed first."""
    if values["manifest"]:
        return sizes_of_slides(read_manifest(values["manifest"]))
    if values["slide"]:
        return sizes_of_slides(rows_from_files([*values["slide"], *values["files"]]))
    pack = find_pack(values["data"] or default_data())
    if pack is None:
        return None
    listed = read_patients(values["patients_file"]) if values["patients_file"] else []
    patients = pack.patients if values["all"] else [*values["patient"], *listed]
    return sizes_of_patients(pack, patients)
