"""Loggers of the metrics of a run: TensorBoard, Weights & Biases, MLflow.

Each package is optional and is imported only if its logger is used. No logger needs a network:
``WANDB_MODE=offline`` and the default database of MLflow keep all values in the run directory.
"""

import abc
import importlib.util
import logging
import os
import secrets
import time
from collections.abc import Sequence
from typing import Any

from wsi_idc.core.errors import RunError, first_line
from wsi_idc.training.runs import EVENTS, MLFLOW, WANDB, Run

logger = logging.getLogger(__name__)
LOGGERS = ("tensorboard", "wandb", "mlflow")
_PROJECT = "wsi-idc"  # project of wandb, experiment of MLflow


def parse_loggers(names: str | None) -> tuple[str, ...]:
    """Return the names in a text such as "tensorboard,wandb".

    The text "none" means no logger. None means TensorBoard, if it is installed.

    Raises:
        RunError: A name is unknown, or its package is not installed.
    """
    if names is None:
        return ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    if names == "none":
        return ()
    loggers = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in loggers:
        if name not in LOGGERS:
            raise RunError(f"--log {names}: give {', '.join(LOGGERS)}, several of them, or none")
        if importlib.util.find_spec(name) is None:
            raise RunError(f"--log {names}: {name} is not installed; run pip install {name}")
    return loggers


def open_logger(name: str, run: Run, settings: dict[str, Any]) -> "MetricLogger":
    """Open the logger ``name``, one of ``LOGGERS``; continue its run if the training is resumed.

    Args:
        name: Name of the logger.
        run: Run directory of the training.
        settings: Settings of the training, which the logger records.

    Raises:
        RunError: The logger cannot start, for example without credentials.
    """
    if name == "tensorboard":
        return _TensorBoard(run)
    return {"wandb": _Wandb, "mlflow": _Mlflow}[name](run, settings)


class MetricLogger(abc.ABC):
    """Logger of the metrics of epochs.

    Attributes:
        num_epochs: Number of epochs that this logger has recorded.
        errors: Errors of the package that do not stop the training.
    """

    num_epochs = 0
    errors: tuple[type[Exception], ...] = ()

    def log(self, history: Sequence[dict[str, Any]]) -> None:
        """Record the epochs that are not yet recorded; ``history`` has all epochs from the first.

        An epoch may be missing after a kill: the training was saved, but the epoch was not logged.
        """
        for record in history[self.num_epochs :]:
            values = {_tag(name): value for name, value in record.items() if name != "epoch"}
            try:
                self._write(record["epoch"], values)
            except self.errors as error:
                text = "epoch %d is not logged (%s); it is logged again with the next epoch"
                logger.warning(text, record["epoch"], first_line(error))
                return
            self.num_epochs = record["epoch"]

    def close(self, *, is_complete: bool) -> None:
        """Close the logger; ``is_complete`` is False if the training stops before its end."""
        try:
            self._close(is_complete=is_complete)
        except self.errors as error:
            logger.warning("a logger is not closed (%s)", first_line(error))

    @abc.abstractmethod
    def _write(self, epoch: int, values: dict[str, float]) -> None: ...

    @abc.abstractmethod
    def _close(self, *, is_complete: bool) -> None: ...


def _tag(name: str) -> str:
    """Return the name of a chart; charts are grouped by the text before the slash."""
    role, _, metric = name.partition("_")
    return f"{metric}/{role}" if role in ("train", "val") else name


class _TensorBoard(MetricLogger):
    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # All events are written again, so the events of an earlier process are deleted.
        self._writer = SummaryWriter(str(run.folder / EVENTS), purge_step=1)

    def _write(self, epoch: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, epoch)
        self._writer.flush()

    def _close(self, *, is_complete: bool) -> None:
        self._writer.close()


class _Wandb(MetricLogger):
    def __init__(self, run: Run, settings: dict[str, Any]) -> None:
        import wandb

        self._run, record = run, run.read_logger(WANDB)
        self._id, self.num_epochs = record.get("id", secrets.token_hex(4)), record["epochs"]
        try:
            self._wandb = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=run.folder.name,
                dir=run.folder,
                id=self._id,
                resume="allow",
                config=settings,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            reason = first_line(error).rstrip(".")
            raise RunError(f"wandb: {reason}; set WANDB_MODE=offline to log offline") from None
        run.write_logger(WANDB, id=self._id, epochs=self.num_epochs)
        place = f"offline, in {run.folder / 'wandb'}" if self._wandb.offline else self._wandb.url
        logger.info("wandb: %s", place)

    def _write(self, epoch: int, values: dict[str, float]) -> None:
        self._wandb.log({**values, "epoch": epoch}, step=epoch)
        self._run.write_logger(WANDB, id=self._id, epochs=epoch)

    def _close(self, *, is_complete: bool) -> None:
        self._wandb.finish(exit_code=0 if is_complete else 1)


class _Mlflow(MetricLogger):
    def __init__(self, run: Run, settings: dict[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("mlflow", "alembic"):  # the messages about the new database
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self._run, record = run, run.read_logger(MLFLOW)
        self.errors, self.num_epochs = (MlflowException,), record["epochs"]
        folder = run.folder.absolute()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        try:
            self._client = MlflowClient(tracking_uri=uri)
            if (run_id := record.get("id")) is None:
                experiment = self._client.get_experiment_by_name(_PROJECT)
                number = (
                    self._client.create_experiment(_PROJECT)
                    if experiment is None
                    else experiment.experiment_id
                )
                run_id = self._client.create_run(number, run_name=run.folder.name).info.run_id
                params = [Param(key, str(value)) for key, value in settings.items()]
                self._client.log_batch(run_id, params=params)
            self._client.update_run(run_id, status="RUNNING")
        except (MlflowException, ImportError) as error:
            reason = first_line(error).rstrip(".")
            raise RunError(f"mlflow: {reason}; check MLFLOW_TRACKING_URI") from None
        self._id: str = run_id
        run.write_logger(MLFLOW, id=self._id, epochs=self.num_epochs)
        logger.info("mlflow: run %s in %s", self._id, uri)

    def _write(self, epoch: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(tag, value, now, epoch) for tag, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)
        self._run.write_logger(MLFLOW, id=self._id, epochs=epoch)

    def _close(self, *, is_complete: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if is_complete else "KILLED")
