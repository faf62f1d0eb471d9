"""What a training leaves for people to read: a line and a point an epoch, curves, samples."""

import logging
from types import TracebackType
from typing import Any

from wsi_idc.data.pictures import augmented_samples
from wsi_idc.learn.curves import plot_curves
from wsi_idc.learn.state import Training

logger = logging.getLogger(__name__)

CURVES = "curves.png"
SAMPLES = "augment.png"
EVENTS = "tensorboard"


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
        training, history = self._training, self._training.place.history
        if not training.world.is_writer:
            return
        training.run.write_history(history)
        best = training.place.best_epoch
        plot_curves(history, training.run.folder / CURVES, best_epoch=best)
        if self._board is None:
            return
        epoch = history[-1]["epoch"]
        for name, value in history[-1].items():
            # Train and val in one chart: TensorBoard groups by what is before the slash.
            role, _, metric = name.partition("_")
            tag = f"{metric}/{role}" if role in ("train", "val") else name
            self._board.add_scalar(tag, value, epoch)
        self._board.flush()


def _open_board(training: Training) -> Any:
    """Return a TensorBoard writer that goes on after the epochs done, None where it is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed: no events are written")
        return None
    # What a killed process noted of epochs that are done again must not show twice.
    return SummaryWriter(
        str(training.run.folder / EVENTS), purge_step=len(training.place.history) + 1
    )
