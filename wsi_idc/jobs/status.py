"""Read the progress of a job's tasks from the files that the tasks write."""

import contextlib
import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_idc.core.errors import CheckpointError, RunError, WsiIdcError
from wsi_idc.core.locks import is_held
from wsi_idc.core.text import count
from wsi_idc.data.open_data import default_data, find_pack
from wsi_idc.data.splits import read_patients
from wsi_idc.evaluation.results import (
    evaluation_name,
    folder_in_run,
    is_evaluation,
    numbered_folders,
)
from wsi_idc.jobs.job import MAP, TRAIN, Job, Task
from wsi_idc.maps.map_reader import map_path, map_paths
from wsi_idc.maps.plan import map_names, parse_shard, shard, sizes_of_patients, sizes_of_slides
from wsi_idc.search.config import SEARCH, SearchSpec, read_search, train_types
from wsi_idc.slides.manifest import read_manifest, rows_from_files
from wsi_idc.training.config import TrainConfig, is_weights_file, resolve
from wsi_idc.training.runs import Run, describe_changes

NOT_BEGUN, RUNNING, STOPPED, FINISHED = "not begun", "running", "stopped", "finished"
PARTLY, UNKNOWN, OTHER = "partly done", "unknown", "other settings"
# For each command, the last file that it writes, relative to --out; "" is --out itself.
_LAST_FILES = {"prepare": "", "explore": "summary.json", "report": "index.html"}


@dataclass(frozen=True)
class TaskStatus:
    """Progress of one task.

    Attributes:
        number: Number of the task; the first task has number 1.
        out: Folder or file with the results of the task.
        state: "not begun", "running", "stopped", "partly done", "finished", "other settings" or
            "unknown". If a task is "stopped", the same command continues the task. "other settings"
            means that the files of the task were made with other settings: the command rejects
            these files.
        detail: Description of the progress, such as "3 of 10 epochs".
    """

    number: int
    out: str
    state: str
    detail: str = ""


def status_of(job: Job) -> list[TaskStatus]:
    """Return the progress of each task of a job. For a search, return one status for all tasks."""
    if job.command == SEARCH:
        folder = job.tasks[0].values["out"]
        return [TaskStatus(1, str(folder), *_search_status(read_search(job.path), folder))]
    return [_task_status(number, task) for number, task in enumerate(job.tasks, start=1)]


def _task_status(number: int, task: Task) -> TaskStatus:
    values, out = task.values, task.values.get("out")
    if task.command == TRAIN:
        status = _train_status(Run(values["out"]), values)
    elif task.command == MAP:
        status = _map_status(values)
    elif task.command in _LAST_FILES:
        last_file = values["out"] / _LAST_FILES[task.command]
        status = FINISHED if last_file.exists() else NOT_BEGUN, ""
    elif task.command == "eval" and values["runs"]:
        name = evaluation_name(values["split"], tta=values["tta"], smooth=values["smooth"])
        runs = list(dict.fromkeys(values["runs"]))
        folders = numbered_folders(runs, out) if out else [folder_in_run(run, name) for run in runs]
        status = _count(map(is_evaluation, folders), "runs are evaluated")
        out = out or f"eval-{name}"
    else:
        out, status = "", (UNKNOWN, f"see the output files of wsi-idc {task.command}")
    return TaskStatus(number, str(out), *status)


def _count(results: Iterable[bool], what: str) -> tuple[str, str]:
    """Return the state and the detail of a task.

    ``results`` has a value for each output of the task: True if the output exists. ``what``
    describes the outputs, for example "runs are evaluated".
    """
    done = list(results)
    state = FINISHED if all(done) else PARTLY if any(done) else NOT_BEGUN
    return state, f"{sum(done)} of {len(done)} {what}"


def _train_status(run: Run, values: Mapping[str, Any]) -> tuple[str, str]:
    state, detail = _run_status(run)
    if state in (NOT_BEGUN, UNKNOWN):
        return state, detail
    config = TrainConfig(**{key: values[key] for key in train_types()})
    try:
        expected = resolve(config).training_settings
    except CheckpointError as error:
        return OTHER, str(error)
    if is_weights_file(config.weights):  # a run stores the file's SHA-256, not its path
        del expected["weights"]
    if config.split == "auto":
        del expected["split"]
    asked = run.read().get("asked")
    stored = asked if isinstance(asked, dict) else {}
    changes = describe_changes({key: stored.get(key) for key in expected}, expected)
    return (OTHER, changes) if changes else (state, detail)


def _run_status(run: Run) -> tuple[str, str]:
    if not run.exists():
        return NOT_BEGUN, ""
    try:
        record = run.read()
    except RunError as error:
        return UNKNOWN, str(error)
    if record.get("status") == "finished":
        best = record.get("best")
        epoch = best.get("epoch") if isinstance(best, dict) else None
        return FINISHED, "" if epoch is None else f"best epoch {epoch}"
    detail = "in its first epoch"
    if epochs := run.read_history():
        last, config = epochs[-1], record.get("asked")
        num_epochs = config.get("epochs") if isinstance(config, dict) else None
        detail = f"{last['epoch']:.0f}{f' of {num_epochs}' if num_epochs else ''} epochs"
        if "val_average_precision" in last:
            detail += f", val AP {last['val_average_precision']:.4f}"
    return (RUNNING if is_held(run.folder / ".lock") else STOPPED), detail


def _search_status(spec: SearchSpec, folder: Path) -> tuple[str, str]:
    if not (folder / "search.json").exists():
        return NOT_BEGUN, count(spec.num_trials, "trial")
    states = [_run_status(Run(path))[0] for path in sorted(folder.glob("trial-*"))]
    finished, running, num_ended = states.count(FINISHED), states.count(RUNNING), 0
    with (
        contextlib.suppress(OSError, ValueError, csv.Error),  # ignore an unreadable table
        (folder / "trials.csv").open(encoding="utf-8", newline="") as file,
    ):
        rows = list(csv.DictReader(file))
        num_ended = sum(row.get("state") in ("complete", "pruned", "failed") for row in rows)
    if not running and num_ended >= spec.num_trials:
        return FINISHED, f"{count(finished, 'trial')} finished; see trials.csv"
    detail = f"{finished} of {spec.num_trials} trials finished, {running} running"
    if unknown := states.count(UNKNOWN):
        detail += f", {unknown} unknown"
    return RUNNING if running else STOPPED, detail


def _map_status(values: Mapping[str, Any]) -> tuple[str, str]:
    out, pack = values["out"], None
    try:
        if values["manifest"]:
            sizes = sizes_of_slides(read_manifest(values["manifest"]))
        elif values["slide"]:
            sizes = sizes_of_slides(rows_from_files([*values["slide"], *values["files"]]))
        elif (pack := find_pack(values["data"] or default_data())) is not None:
            file = values["patients_file"]
            listed = [*values["patient"], *(read_patients(file) if file else [])]
            sizes = sizes_of_patients(pack, pack.patients if values["all"] else listed)
        else:
            num_maps = len(map_paths(out))
            return (
                UNKNOWN,
                f"{count(num_maps, 'map exists', 'maps exist')}; the data are not packed yet",
            )
    except WsiIdcError as error:
        return UNKNOWN, str(error)
    if not sizes:
        return UNKNOWN, "the job gives no patient or slide to map"
    names = shard(sizes, *parse_shard(values["shard"])) if values["shard"] else list(sizes)
    if pack is not None:
        names = map_names(pack, names)
    return _count((map_path(out, name).exists() for name in names), "maps exist")
