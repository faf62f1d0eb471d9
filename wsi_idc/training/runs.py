"""The run directory: what one training asked for, how far it is, and what it left.

``run.json`` says what was asked for and whether it is finished, ``metrics.jsonl`` has a line an
epoch, ``best.pt`` is the checkpoint, ``last.pt`` the state to go on from.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsi_idc.core.errors import RunError
from wsi_idc.core.files import write_json, write_text
from wsi_idc.core.locks import wait_for_lock

FORMAT = "wsi-idc-run"
HISTORY = "metrics.jsonl"
CURVES = "curves.png"
SAMPLES = "augment.png"
EVENTS = "tensorboard"
_TOO_LARGE_TO_DRAW = 1e15


@dataclass(frozen=True)
class Run:
    """One run directory."""

    folder: Path

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.folder / "best.pt"

    @property
    def last(self) -> Path:
        """The training state to go on from."""
        return self.folder / "last.pt"

    def read(self) -> dict[str, Any]:
        """Return what run.json says.

        Raises:
            RunError: It is missing or damaged.
        """
        path = self.folder / "run.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path}: not a readable run ({error}); give another --out") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise RunError(f"{path}: not a run of wsi-idc; give another --out")
        return record

    def is_finished(self) -> bool:
        """Return whether the training came to its end."""
        return self.best.exists() and self.exists_() and self.read().get("status") == "finished"

    def exists_(self) -> bool:
        """Return whether a training was started here."""
        return (self.folder / "run.json").exists()

    def validate_dir(self) -> None:
        """Raise where the folder holds something else than a run.

        Raises:
            RunError: It does.
        """
        if self.exists_():
            self.read()
        elif any(not path.name.startswith(".") for path in self.folder.glob("*")):
            raise RunError(f"{self.folder} is not empty and no run; give another --out")

    def protect_weights(self, weights: Path) -> None:
        """Raise where a file of weights to start from would go when this run is trained anew.

        Raises:
            RunError: It would.
        """
        if any(own.exists() and own.samefile(weights) for own in (self.best, self.last)):
            raise RunError(f"{weights} is this run's own and would be lost; give another --out")

    def matches(self, asked: Mapping[str, Any]) -> bool:
        """Return whether the folder holds a run that asked for just this."""
        return self.exists_() and self.read().get("asked") == asked

    def check_same(self, asked: Mapping[str, Any]) -> None:
        """Raise where the folder holds a run that asked for something else than ``asked``.

        Raises:
            RunError: It does; the message shows the difference.
        """
        if not self.exists_():
            return
        before = self.read().get("asked")
        if changed := difference(before, asked):
            raise RunError(
                f"{self.folder} holds a run with other settings ({changed}); give another --out, "
                "or --overwrite to train anew"
            )

    def start(self, asked: Mapping[str, Any], more: Mapping[str, Any]) -> None:
        """Begin a training that asks for ``asked``, in place of an earlier one.

        Raises:
            RunError: The folder holds something else than a run.
        """
        self.validate_dir()
        for name in ("last.pt", "best.pt", HISTORY, CURVES, SAMPLES):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / EVENTS, ignore_errors=True)
        self.write("running", asked, more)

    def write(self, status: str, asked: Mapping[str, Any], more: Mapping[str, Any]) -> None:
        """Write run.json."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"format": FORMAT, "status": status, "updated": now, "asked": asked, **more}
        write_json(self.folder / "run.json", record)

    def update_best_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write in run.json what the best checkpoint says of itself now; the run is no newer."""
        write_json(self.folder / "run.json", {**self.read(), "best": dict(metrics)})

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl, a line an epoch."""
        lines = "".join(json.dumps(epoch) + "\n" for epoch in history)
        write_text(self.folder / HISTORY, lines)

    def read_history(self) -> list[dict[str, Any]] | None:
        """Return the epochs of metrics.jsonl, with the numbers of each; None where there are none.

        A line or value that is not as ``write_history`` writes it is passed over.
        """
        try:
            lines = (self.folder / HISTORY).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return None
        found = []
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("epoch"), int):
                numbers = {k: v for k, v in record.items() if is_plain_number(v)}
                if "epoch" in numbers:
                    found.append(numbers)
        return found or None

    @contextmanager
    def held(self, *, by: bool = True) -> Iterator[None]:
        """Keep other processes from training in this folder.

        Args:
            by: False for one of several that train together and does not write.

        Raises:
            BusyError: One does already.
        """
        if not by:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # `wsi-idc status` holds the lock for a moment when it tests it.
        with wait_for_lock(self.folder / ".lock", what=self.folder, timeout=1.0):
            yield


def is_plain_number(value: Any) -> bool:
    """Return whether it is a number that can be drawn."""
    return isinstance(value, int | float) and abs(value) < _TOO_LARGE_TO_DRAW


def difference(before: object, asked: Mapping[str, Any], *, longest: int = 40) -> str:
    """Return in words how ``asked`` differs from the record ``before``, empty where it does not."""

    def short(value: Any) -> str:
        try:
            text = json.dumps(value)
        except RecursionError:
            return "..."
        return text if len(text) <= longest else f"{text[: longest - 3]}..."

    before = before if isinstance(before, dict) else {}
    return "; ".join(
        f"{key} {short(before.get(key))} -> {short(asked.get(key))}"
        for key in sorted(before.keys() | asked.keys())
        if before.get(key) != asked.get(key)
    )


def default_run(runs: Path, model: str, asked: Mapping[str, Any]) -> Run:
    """Return the run that a training with these settings has by default: same words, same run."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return Run(runs / f"{model}-{digest[:8]}")


def newest_finished(runs: Path) -> Run | None:
    """Return the run that finished last, None where there is none; unreadable ones are passed."""
    found = []
    for file in runs.glob("*/run.json"):
        run = Run(file.parent)
        try:
            record = run.read()
        except RunError:
            continue
        if record.get("status") == "finished" and run.best.exists():
            found.append((str(record.get("updated")), run.folder.name, run))
    return max(found, key=lambda item: item[:2])[2] if found else None
