"""Optuna study that all processes of a search share, to claim trials and to record results.

Optuna stores the study in a journal. The journal is a text file; lines are only appended to it. To
claim a trial, a process locks the lock file of the trial. The process keeps the lock until the
result is recorded. If a process is killed, the operating system releases its lock. So a trial can
be resumed if its state is "running" and its lock is free. On a disk without file locks, run only
one process at a time.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsi_idc.core.errors import BusyError, JobError, WsiIdcError
from wsi_idc.core.locks import locked, wait_for_lock
from wsi_idc.runtime.signals import StopRequest, raise_if_stopped
from wsi_idc.search.config import Axis, Range, SearchSpec, Value
from wsi_idc.search.results import Trial
from wsi_idc.training.config import monitored_value

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import TrialState
except ImportError as error:
    raise WsiIdcError(f"a search needs optuna ({error}); pip install optuna") from None

logger = logging.getLogger(__name__)

JOURNAL = "study.journal"
_NAME = "search"
# Pruning starts after this number of trials: the median of fewer trials is not reliable.
PRUNE_AFTER_TRIALS = 4
# A trial is pruned only after this number of epochs: before, the learning rate still rises.
PRUNE_AFTER_EPOCHS = 2

Pruned = optuna.TrialPruned


class _JournalLock(JournalFileOpenLock):
    """Lock of the journal that also works on network disks.

    If a killed process left an incomplete last line in the journal, ``acquire`` removes this line.
    Otherwise, the next line would be appended to the incomplete line. Optuna itself removes the
    lock of a killed process after 30 s.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal

    def acquire(self) -> bool:
        super().acquire()
        try:
            with self._journal.open("r+b") as file:
                if size := file.seek(0, os.SEEK_END):
                    file.seek(size - 1)
                    if file.read(1) != b"\n":
                        file.seek(0)
                        file.truncate(file.read().rfind(b"\n") + 1)
        except BaseException:
            self.release()
            raise
        return True


class TrialLease:
    """A trial that this process has claimed.

    Attributes:
        number: Number of the trial, counted from 0.
        point: Value of the trial on each axis.
    """

    def __init__(self, study: "optuna.Study", trial: "optuna.Trial", spec: SearchSpec) -> None:
        self._study, self._trial, self._metric = study, trial, spec.metric
        self._started = time.monotonic() - trial.user_attrs.get("seconds", 0.0)
        self.number: int = trial.number
        self.point = {name: _suggest(trial, name, axis) for name, axis in spec.axes.items()}

    def on_epoch(self, epoch: dict[str, Any]) -> None:
        """Record an epoch's metric; raise Pruned if optuna's ``MedianPruner`` prunes the trial."""
        self._trial.report(monitored_value(epoch, self._metric), epoch["epoch"])
        if self._trial.should_prune():
            raise Pruned

    def pause(self, **attributes: Any) -> None:
        """Record the time spent so far and further attributes; the trial can be resumed later."""
        attributes["seconds"] = time.monotonic() - self._started
        for name, value in attributes.items():
            self._trial.set_user_attr(name, value)

    def finish(self, state: "TrialState", value: float | None = None, **attributes: Any) -> None:
        """Record the end of the trial with its state, its value and further attributes."""
        # On a disk without file locks, another process may have finished the same trial.
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.pause(**attributes)
            self._study.tell(self._trial, value, state=state, skip_if_finished=True)


class Study:
    """Study in the folder of a search; a missing study is created."""

    def __init__(self, spec: SearchSpec, folder: Path, *, stop: StopRequest | None = None) -> None:
        self.spec, self.folder, self._stop = spec, folder, stop
        # Hide optuna's own log messages: this program logs the trials itself.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with wait_for_search_lock(folder, stop):
            self._study = _open(folder / JOURNAL)
            if spec.sampler == "grid":
                # An earlier process may have added the first points; add only the missing points.
                num_known = len(self._study.get_trials(deepcopy=False))
                for point in list(spec.points())[num_known:]:
                    self._study.enqueue_trial(point)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[TrialLease | None]:
        """Context manager that claims the next trial; it yields None if no trial is left.

        Unfinished trials of stopped or killed processes are claimed first.
        """
        with contextlib.ExitStack() as stack:
            with wait_for_search_lock(self.folder, self._stop):
                lease = self._claim_next(stack)
            yield lease

    def _claim_next(self, stack: contextlib.ExitStack) -> TrialLease | None:
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                with contextlib.suppress(BusyError):
                    self._lock_trial(trial.number, stack)
                    resumed = optuna.trial.Trial(self._study, trial._trial_id)
                    return TrialLease(self._study, resumed, self.spec)
        waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        if not waiting and len(trials) >= self.spec.num_trials:
            return None
        self._lock_trial(waiting[0] if waiting else len(trials), stack)
        return TrialLease(self._study, self._study.ask(), self.spec)

    def _lock_trial(self, number: int, stack: contextlib.ExitStack) -> None:
        """Lock a trial, and create a sampler whose seed depends on the number of the trial.

        Therefore, a resumed trial gets the same values as before.
        """
        lock = self.folder / f".trial-{number:04d}.lock"
        try:
            stack.enter_context(locked(lock, what=self.folder))
        except BusyError:
            raise BusyError(f"{lock}: another process holds this lock; run again later") from None
        seed = int(np.random.SeedSequence([self.spec.seed, number]).generate_state(1)[0])
        self._study.sampler = (
            # With constant_liar, parallel processes choose different points.
            optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            if self.spec.sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )

    def trials(self) -> list[Trial]:
        """Return all trials, sorted by number."""
        return [_to_trial(trial) for trial in self._study.get_trials(deepcopy=False)]


def _open(journal: Path) -> "optuna.Study":
    try:
        backend = JournalFileBackend(str(journal), lock_obj=_JournalLock(journal))
        storage = optuna.storages.JournalStorage(backend)
        if not storage.get_all_studies():
            optuna.create_study(storage=storage, study_name=_NAME, direction="maximize")
        pruner = optuna.pruners.MedianPruner(PRUNE_AFTER_TRIALS, PRUNE_AFTER_EPOCHS)
        return optuna.load_study(storage=storage, study_name=_NAME, pruner=pruner)
    except (ValueError, KeyError) as error:
        raise JobError(
            f"{journal} is damaged ({type(error).__name__}); give the search another name"
        ) from None


def _to_trial(trial: "optuna.trial.FrozenTrial") -> Trial:
    result = trial.user_attrs.get("result", {}) if trial.state == TrialState.COMPLETE else {}
    last_value = trial.intermediate_values.get(trial.last_step)
    return Trial(
        number=trial.number,
        state="failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
        point=trial.params or trial.system_attrs.get("fixed_params", {}),
        value=last_value if trial.value is None else trial.value,
        seconds=trial.user_attrs.get("seconds"),
        reason=trial.user_attrs.get("reason"),
        **result,
    )


def _suggest(trial: "optuna.Trial", name: str, axis: Axis) -> Value:
    if not isinstance(axis, Range):
        return trial.suggest_categorical(name, axis)
    if isinstance(axis.low, int):
        return trial.suggest_int(name, axis.low, axis.high, step=axis.step or 1, log=axis.log)
    return trial.suggest_float(name, axis.low, axis.high, step=axis.step, log=axis.log)


@contextlib.contextmanager
def wait_for_search_lock(folder: Path, stop: StopRequest | None) -> Iterator[None]:
    """Context manager that waits for the lock of a search, and then holds the lock.

    While the lock is held, no other process can claim a trial.
    """
    lock, on_wait = folder / ".lock", partial(raise_if_stopped, stop)
    log_as = f"another process of this search ({lock})"
    with wait_for_lock(lock, what=folder, log_as=log_as, log_after=10.0, on_wait=on_wait):
        yield
