"""Run directory: files of one training; importing this module does not import torch.

``run.json`` contains the settings and the status. ``metrics.jsonl`` has one line per epoch.
``best.pt`` is the checkpoint of the best epoch. ``last.pt`` is the state from which the training
resumes. While a new training replaces a finished run, ``replaced.pt`` is the checkpoint of the
finished run.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsi_idc.core.errors import CheckpointError, RunError, first_line
from wsi_idc.core.files import regular_file, write_json, write_text
from wsi_idc.core.locks import retry_while_busy, wait_for_lock

FORMAT = "wsi-idc-run"
HISTORY = "metrics.jsonl"
CURVES = "curves.png"
SAMPLES = "augment.png"
EVENTS = "tensorboard"
# Files with the id of the run in a logger, and with the number of epochs that the logger recorded.
WANDB, MLFLOW = "wandb.json", "mlflow.json"
_MAX_NAME_BYTES = 10_000
_SECONDS_OF_WRITING = 30.0
DEFAULT = "default"  # file with the path of the default run, relative to the folder of the file


@dataclass(frozen=True)
class Run:
    """Run directory with the files of one training."""

    folder: Path

    @property
    def best(self) -> Path:
        """Path of the checkpoint of the best epoch."""
        return self.folder / "best.pt"

    @property
    def last(self) -> Path:
        """Path of the state from which the training resumes."""
        return self.folder / "last.pt"

    @property
    def replaced(self) -> Path:
        """Path of the old checkpoint while a new training replaces a finished run."""
        return self.folder / "replaced.pt"

    def exists(self) -> bool:
        """Return whether a training was started in this folder."""
        return (self.folder / "run.json").exists()

    def is_finished(self) -> bool:
        """Return whether the training is finished and its checkpoint exists."""
        return self.best.exists() and self.exists() and self.read().get("status") == "finished"

    @property
    def finished_checkpoint(self) -> Path:
        """Path of the checkpoint of the last finished training.

        Raises:
            RunError: ``run.json`` is damaged.
        """
        is_replaced = self.replaced.exists() and not self.is_finished()
        return self.replaced if is_replaced else self.best

    def read(self) -> dict[str, Any]:
        """Return the content of run.json; raise RunError if it is missing or damaged."""
        path = self.folder / "run.json"
        try:
            record = json.loads(regular_file(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path}: not a readable run ({error}); give another --out") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise RunError(f"{path}: not a run of wsi-idc; give another --out")
        return record

    def validate_dir(self) -> None:
        """Raise RunError if the folder has files, but is not a run directory."""
        if self.exists():
            self.read()
        elif any(not path.name.startswith(".") for path in self.folder.glob("*")):
            raise RunError(f"{self.folder} is not empty and is not a run; give another --out")

    def validate_config(self, settings: Mapping[str, Any]) -> None:
        """Raise RunError if the folder contains a run with settings other than ``settings``."""
        if self.exists() and (changes := describe_changes(self.read().get("asked"), settings)):
            raise RunError(
                f"{self.folder} contains a run with other settings ({changes}); give another "
                "--out, or --overwrite to replace this run"
            )

    def protect_weights(self, weights: Path) -> None:
        """Raise RunError if a new training in this folder would delete the file ``weights``."""
        files = (self.best, self.last, self.replaced)
        if any(own.exists() and own.samefile(weights) for own in files):
            raise RunError(
                f"a new training in {self.folder} would delete the initial weights {weights}; "
                "give another --out"
            )

    def start(self, settings: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        """Delete the files of an earlier training and write a new run.json.

        The checkpoint of a finished run is kept as ``replaced.pt`` until the new run is finished.
        """
        self.validate_dir()
        if self.is_finished():
            self.best.replace(self.replaced)
        for name in ("last.pt", "best.pt", HISTORY, CURVES, SAMPLES, WANDB, MLFLOW):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / EVENTS, ignore_errors=True)
        self.write("running", settings, details)

    def write(self, status: str, settings: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        """Write run.json with the status, the settings and the entries of ``details``."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"format": FORMAT, "status": status, "updated": now, "asked": settings, **details}
        write_json(self.folder / "run.json", record)
        if status == "finished":
            self.replaced.unlink(missing_ok=True)

    def update_best_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Set the entry "best" of run.json to ``metrics``; the entry "updated" does not change."""
        write_json(self.folder / "run.json", {**self.read(), "best": dict(metrics)})

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl, one line per epoch."""
        write_text(self.folder / HISTORY, "".join(json.dumps(epoch) + "\n" for epoch in history))

    def read_history(self) -> list[dict[str, Any]] | None:
        """Return the records in metrics.jsonl, one per epoch; None if there is no record.

        Damaged lines are left out. In a record, values that are not numbers and numbers above
        1e15 are left out, because they cannot be drawn.
        """
        try:
            lines = (self.folder / HISTORY).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return None
        history = []
        for line in lines:
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
                values = record.items() if isinstance(record, dict) else ()
                numbers = {k: v for k, v in values if isinstance(v, int | float) and abs(v) < 1e15}
                if isinstance(numbers.get("epoch"), int):
                    history.append(numbers)
        return history or None

    def read_logger(self, name: str) -> dict[str, Any]:
        """Return the content of the file ``name`` of a logger; without a file, it has 0 epochs."""
        try:
            record = json.loads(regular_file(self.folder / name).read_text(encoding="utf-8"))
            return {"id": str(record["id"]), "epochs": int(record["epochs"])}
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return {"epochs": 0}

    def write_logger(self, name: str, *, id: str, epochs: int) -> None:
        """Write the file ``name`` of a logger."""
        write_json(self.folder / name, {"id": id, "epochs": epochs})

    def lock(self) -> AbstractContextManager[None]:
        """Lock the folder for a training; raise BusyError if another process holds the lock."""
        # Wait for a moment: ``wsi-idc status`` also takes this lock, but releases it at once.
        return wait_for_lock(self.folder / ".lock", what=self.folder, timeout=0.8)


def describe_changes(before: object, settings: Mapping[str, Any], *, max_length: int = 40) -> str:
    """Return a text that lists the differences between two sets of settings; "" if they are equal.

    Args:
        before: Settings from a file; they count as empty if ``before`` is not a dictionary.
        settings: New settings.
        max_length: Largest number of characters of a value; longer values are shortened.
    """

    def short(value: Any) -> str:
        try:
            text = json.dumps(value)
        except RecursionError:
            return "..."
        return text if len(text) <= max_length else f"{text[: max_length - 3]}..."

    before = before if isinstance(before, dict) else {}
    return "; ".join(
        f"{key} {short(before.get(key))} -> {short(settings.get(key))}"
        for key in sorted(before.keys() | settings.keys())
        if before.get(key) != settings.get(key)
    )


def default_run(runs: Path, model: str, settings: Mapping[str, Any]) -> Run:
    """Return the default run directory of a training, with a name made from its settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", model)  # names of timm have colons and slashes
    return Run(runs / f"{name}-{digest[:8]}")


def check_default(runs: Path, run: Path | None = None) -> None:
    """Check that the file ``default`` in ``runs`` can contain the path ``run``.

    Raises:
        RunError: ``default`` is a folder, or ``run`` is the path of the file ``default``.
    """
    file = runs / DEFAULT
    if file.is_dir():
        raise RunError(f"{file} is a folder, so no default can be set; rename the folder")
    if run is not None and run.absolute() == file.absolute():
        raise RunError(f"{file} names the default run; give the path of a run")


def set_default(runs: Path, run: Path | None) -> None:
    """Write the path of a run or a .pt file into the file ``default`` in ``runs``.

    The call with ``run=None`` deletes the file ``default``.

    Raises:
        RunError: ``default`` is a folder, or ``run`` is the path of the file ``default``.
    """
    check_default(runs, run)
    file = runs / DEFAULT
    if run is None:
        file.unlink(missing_ok=True)
    else:
        text = os.path.relpath(run.absolute(), runs.absolute()) + "\n"
        # Another training may finish at the same moment; it writes the file within milliseconds.
        retry_while_busy(lambda: write_text(file, text), timeout=_SECONDS_OF_WRITING)


def checkpoint_file(path: Path) -> Path:
    """Return the checkpoint file of a finished run; return the path of any other file unchanged.

    Raises:
        CheckpointError: The path does not exist, or the training of the run is not finished.
    """
    if path.is_dir() and (finished := Run(path).finished_checkpoint).name != "best.pt":
        raise CheckpointError(
            f"{path}: the new training of this run is not finished; wait for it, run the same "
            f"wsi-idc train again, or give {finished}"
        )
    if not path.exists() and path.suffix != ".pt":
        raise CheckpointError(f"{path}: no such file; give a finished run or a .pt file")
    if path.is_dir() and not (path / "best.pt").exists():
        raise CheckpointError(f"{path}: no best.pt in this folder; give a finished run")
    return path / "best.pt" if path.is_dir() else path


def default_checkpoint(runs: Path) -> Path | None:
    """Return the path of the default checkpoint; None if there is no file ``default`` in ``runs``.

    The file ``default`` contains the path of a run or of a checkpoint. While a new training
    replaces this run, return the old checkpoint of the run.

    Raises:
        RunError: The file cannot be read, or its content is not the path of a checkpoint.
    """
    file = runs / DEFAULT
    if not file.exists():
        return None
    try:
        text = regular_file(file, _MAX_NAME_BYTES).read_text(encoding="utf-8").strip()
        path = Path(os.path.normpath(runs / text))  # ".." does not follow a link at ``runs``
        path = Run(path).finished_checkpoint if path.is_dir() else path
        if path.is_file() and path != file:
            return path
        reason = f"there is no checkpoint {path}"
    except (OSError, ValueError) as error:
        reason = first_line(error)
    raise RunError(f"{file}: {reason}; choose a run with wsi-idc use RUN, or wsi-idc use bundled")
