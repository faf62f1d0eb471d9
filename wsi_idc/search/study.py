"""A search's study: which trial is next, and what came of each, shared by any number of processes.

The study is a journal of optuna's, a text file that is only ever appended to. A process *claims* a
trial, which it holds by a lock on the trial's folder until it has told the trial's end: the system
drops the lock of a killed process, so a trial that runs in the study and is held by nobody is one
to go on with. On a disk without file locks, run one process at a time.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsi_idc.core.errors import BusyError, JobError, WsiIdcError
from wsi_idc.core.locks import locked, wait_for_lock
from wsi_idc.runtime.signals import StopRequest, raise_if_stopped
from wsi_idc.search.config import Axis, Range, SearchSpec, Value
from wsi_idc.search.results import Trial

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import TrialState
except ImportError as error:
    raise WsiIdcError(f"a search needs optuna ({error}); pip install optuna") from None

logger = logging.getLogger(__name__)

JOURNAL = "study.journal"
_NAME = "search"
_SECONDS_BEFORE_LOG = 10.0
# A median of fewer says little, and in its first epochs a training has not warmed up.
PRUNE_AFTER_TRIALS = 4
PRUNE_AFTER_EPOCHS = 2

Pruned = optuna.TrialPruned


class _Lock(JournalFileOpenLock):
    """Optuna's lock of the journal, which works on network disks.

    One that a killed process left is removed after 30 s. So is half a line of its, which would
    spoil the line that comes after it.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal

    def acquire(self) -> bool:
        super().acquire()
        try:
            _drop_half_line(self._journal)
        except BaseException:
            self.release()
            raise
        return True


def _drop_half_line(journal: Path) -> None:
    with journal.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


class TrialLease:
    """A trial that is this process's own.

    Attributes:
        number: Of the trial.
        point: Value of each axis.
    """

    def __init__(self, study: "optuna.Study", trial: "optuna.Trial", spec: SearchSpec) -> None:
        self._study, self._trial, self._metric = study, trial, spec.metric
        self._started, self._before = time.monotonic(), trial.user_attrs.get("seconds", 0.0)
        self.number: int = trial.number
        self.point = {name: _suggest(trial, name, axis) for name, axis in spec.axes.items()}

    def on_epoch(self, epoch: dict[str, Any]) -> None:
        """Report an epoch's value.

        Raises:
            Pruned: The trial is below the median of the others.
        """
        self._trial.report(epoch[f"val_{self._metric}"], epoch["epoch"])
        if self._trial.should_prune():
            raise Pruned

    def pause(self) -> None:
        """Note the time spent; the trial goes on another day."""
        self._note(seconds=self._seconds())

    def complete(self, value: float, **result: Any) -> None:
        """Tell the trial's value, and keep ``result`` with it."""
        self._end(TrialState.COMPLETE, value, result=result)

    def prune(self) -> None:
        """Tell that the trial was cut short."""
        self._end(TrialState.PRUNED)

    def fail(self, reason: str) -> None:
        """Tell that the trial failed."""
        self._end(TrialState.FAIL, reason=reason)

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def _note(self, **notes: Any) -> None:
        for name, value in notes.items():
            self._trial.set_user_attr(name, value)

    def _end(self, state: "TrialState", value: float | None = None, **notes: Any) -> None:
        # On a disk without locks another process may have told the same trial.
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._note(seconds=self._seconds(), **notes)
            self._study.tell(self._trial, value, state=state, skip_if_finished=True)


class Study:
    """The study in a search's folder, made if need be.

    Raises:
        JobError: The journal is damaged.
    """

    def __init__(self, spec: SearchSpec, folder: Path, *, stop: StopRequest | None = None) -> None:
        self.spec, self.folder, self._stop = spec, folder, stop
        # What it says by itself is for optuna's own users.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self.locked():
            self._study = self._open()
            if spec.sampler == "grid":
                # Counting those there already, a process killed in between does no harm.
                for point in list(spec.points())[len(self._study.get_trials(deepcopy=False)) :]:
                    self._study.enqueue_trial(point)

    def _open(self) -> "optuna.Study":
        journal = self.folder / JOURNAL
        try:
            backend = JournalFileBackend(str(journal), lock_obj=_Lock(journal))
            storage = optuna.storages.JournalStorage(backend)
            if not storage.get_all_studies():
                optuna.create_study(storage=storage, study_name=_NAME, direction="maximize")
            pruner = optuna.pruners.MedianPruner(PRUNE_AFTER_TRIALS, PRUNE_AFTER_EPOCHS)
            return optuna.load_study(storage=storage, study_name=_NAME, pruner=pruner)
        except (ValueError, KeyError) as error:
            raise JobError(
                f"{journal}: damaged ({type(error).__name__}); give another name"
            ) from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the search's other processes from claiming and from writing results."""
        with wait_for_search_lock(self.folder, self._stop):
            yield

    @contextlib.contextmanager
    def claimed(self) -> Iterator[TrialLease | None]:
        """Hold the next trial to work on, None where no other is left to this process.

        Trials that a stopped or killed process left come first.
        """
        with contextlib.ExitStack() as held:
            with self.locked():
                claim = self._next(held)
            yield claim

    def _next(self, held: contextlib.ExitStack) -> TrialLease | None:
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING and self._hold(trial.number, held):
                self._seed(trial.number)
                mine = optuna.trial.Trial(self._study, trial._trial_id)
                return TrialLease(self._study, mine, self.spec)
        waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        if not waiting and len(trials) >= self.spec.num_trials:
            return None
        number = waiting[0] if waiting else len(trials)
        if not self._hold(number, held):
            raise BusyError(f"{self._lock_of(number)}: held by another process; run again later")
        self._seed(number)
        return TrialLease(self._study, self._study.ask(), self.spec)

    def _lock_of(self, number: int) -> Path:
        return self.folder / f".trial-{number:04d}.lock"

    def _hold(self, number: int, held: contextlib.ExitStack) -> bool:
        try:
            held.enter_context(locked(self._lock_of(number), what=self.folder))
        except BusyError:
            return False
        return True

    def _seed(self, number: int) -> None:
        """Give each trial draws of its own, whichever process asks and after whatever restarts."""
        seed = int(np.random.SeedSequence([self.spec.seed, number]).generate_state(1)[0])
        if self.spec.sampler == "tpe":
            # With the constant liar, two processes at once do not try the same place.
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        else:
            self._study.sampler = optuna.samplers.RandomSampler(seed=seed)

    def trials(self) -> list[Trial]:
        """Return all trials by number."""
        return [self._trial(trial) for trial in self._study.get_trials(deepcopy=False)]

    def _trial(self, trial: Any) -> Trial:
        result = trial.user_attrs.get("result", {}) if trial.state == TrialState.COMPLETE else {}
        value = trial.value
        if value is None and trial.intermediate_values:
            value = trial.intermediate_values[trial.last_step]
        return Trial(
            number=trial.number,
            state="failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
            point=trial.params or trial.system_attrs.get("fixed_params", {}),
            value=value,
            seconds=trial.user_attrs.get("seconds"),
            reason=trial.user_attrs.get("reason"),
            **result,
        )


def _suggest(trial: "optuna.Trial", name: str, axis: Axis) -> Value:
    if not isinstance(axis, Range):
        return trial.suggest_categorical(name, axis)
    suggest: Callable[..., Value] = trial.suggest_float
    options: dict[str, Any] = {"step": axis.step, "log": axis.log}
    if isinstance(axis.low, int):
        suggest = trial.suggest_int
        options["step"] = axis.step or 1
    return suggest(name, axis.low, axis.high, **options)


def wait_for_search_lock(
    folder: Path, stop: StopRequest | None
) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a search inside the block; wait while another process holds it.

    Raises:
        StoppedError: ``stop`` was set meanwhile.
    """
    lock = folder / ".lock"
    return wait_for_lock(
        lock,
        what=folder,
        log_as=f"another process of this search ({lock})",
        log_after=_SECONDS_BEFORE_LOG,
        on_wait=lambda: raise_if_stopped(stop),
    )
