"""Percent and time left of a complete training."""

import time

from wsi_idc.core.progress import format_duration
from wsi_idc.training.state import Training

# A validation has only the forward pass, about a third of the work of a step.
_VALIDATION_WORK = 1 / 3


class TimeLeft:
    """Estimate of the time left of a training, from the work done since this object was made."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._started, self._done_before = time.monotonic(), self._epochs_done()

    def _epochs_done(self) -> float:
        """Return the number of epochs done; a part of an epoch is its fraction of the work."""
        training, state = self._training, self._training.state
        work = training.steps_per_epoch * training.patches_per_step
        work += round(_VALIDATION_WORK * len(training.rows["val"]))
        return state.epoch + state.step * training.patches_per_step / work

    def percent(self) -> str:
        """Return the fraction of the training that is done, such as "run 38%"."""
        return f"run {int(100 * self._epochs_done() / self._training.config.epochs)}%"

    def __str__(self) -> str:
        """Return a text such as "5:12:00 left"; it is "" before the first step.

        The text begins with "at most" if the training may stop before its last epoch.
        """
        training, done = self._training, self._epochs_done()
        if done <= self._done_before:
            return ""
        rate = (done - self._done_before) / (time.monotonic() - self._started)
        limit = "at most " if training.can_stop_early else ""
        return f"{limit}{format_duration((training.config.epochs - done) / rate)} left"
