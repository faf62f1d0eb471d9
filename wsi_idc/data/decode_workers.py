"""Worker processes for decoding: they ignore stop signals and end with their parent."""

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType

from wsi_idc.runtime.signals import STOP_SIGNALS


def create_worker_pool(num_workers: int) -> ProcessPoolExecutor:
    """Create a pool of processes; each starts when there is work for it."""
    return ProcessPoolExecutor(
        num_workers, mp_context=_WorkerContext(), initializer=_exit_with_parent
    )


class _WorkerProcess(SpawnProcess):
    def start(self) -> None:
        # A terminal and a scheduler send their signals to child processes too, but only the parent
        # handles them. A child process inherits the blocked signals.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        # A spawned process imports its parent's main module again: it gets an empty one.
        main_module = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main_module
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def terminate(self) -> None:
        # The pool ends the other workers after one was killed; SIGTERM is blocked.
        self.kill()


class _WorkerContext(SpawnContext):
    Process = _WorkerProcess


def _exit_with_parent() -> None:
    """Start a thread that ends this process when its parent ends, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
