"""What a training leaves for people to read: a line and a point an epoch, curves, samples."""

import logging
from types import TracebackType
from typing import Any

from wsi_idc.explore.patch_figures import augmented_samples
from wsi_idc.training.curves import plot_curves
from wsi_idc.training.runs import CURVES, EVENTS, SAMPLES
from wsi_idc.training.setup import Training

logger = logging.getLogger(__name__)


class Journal:
    """Writes ``metrics.jsonl``, TensorBoard events and pictures into a run's folder.

    Use it as a context manager; in a process that is not the writer it does nothing.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._board: Any = None
        if not training.world.is_writer:
            return
        folder, config = training.run.folder, training.config
        if not (folder / SAMPLES).exists():
            augmented_samples(
                training.pack,
                training.rows["train"],
                config.augment,
                seed=config.seed,
                path=folder / SAMPLES,
            )
        self._board = _open_board(training)
        # A killed process may have saved an epoch that it did not live to note.
        for record in training.place.history:
            self._add(record)
        if training.place.history:
            self._write()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is not None:
            self._board.close()

    def note(self) -> None:
        """Note the epoch that has just ended."""
        if self._training.world.is_writer:
            self._add(self._training.place.history[-1])
            self._write()

    def _add(self, record: dict[str, Any]) -> None:
        if self._board is None:
            return
        for name, value in record.items():
            # Train and val in one chart: TensorBoard groups by what is before the slash.
            role, _, metric = name.partition("_")
            tag = f"{metric}/{role}" if role in ("train", "val") else name
            self._board.add_scalar(tag, value, record["epoch"])

    def _write(self) -> None:
        run, place = self._training.run, self._training.place
        run.write_history(place.history)
        plot_curves(place.history, run.folder / CURVES, best_epoch=place.best_epoch)
        if self._board is not None:
            self._board.flush()


def _open_board(training: Training) -> Any:
    """Return a TensorBoard writer that goes on after the epochs done, None where it is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed: no events are written")
        return None
    # What earlier processes noted is noted again, and must not show twice.
    return SummaryWriter(str(training.run.folder / EVENTS), purge_step=1)
