"""Processes that decode, for trees so large that threads would wait for one another too long.

A child reads tasks from its standard input and writes what it found to its standard output, until
the input ends, as it does when its parent dies, however it dies. Unlike those of multiprocessing,
it never runs the parent's main module again, and nothing but its parent can stop it halfway.
"""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from wsi_idc.core.errors import WorkerError
from wsi_idc.data.decode_cache import Chunk, DecodeCache
from wsi_idc.data.patch_store import PatchStore
from wsi_idc.runtime.signals import STOP_SIGNALS

# The parent's way to find modules, which may be its very own.
_PROGRAM = """
import sys
sys.path[:] = {path!r}
from wsi_idc.data.children import worker_main
worker_main()
"""


class DecodeWorkerPool:
    """Processes that decode chunks; used as a context manager, all gone after the block."""

    def __init__(self, num: int) -> None:
        command = [sys.executable, "-c", _PROGRAM.format(path=sys.path)]
        # A terminal and a scheduler send their signals to children too; what to do about one is
        # for the parent to say. What is blocked here is blocked in a process started here.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._all = [
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                for _ in range(num)
            ]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for child in self._all:
            self._idle.put(child)

    def decode(self, file: DecodeCache, origin: PatchStore, number: int, paths: list[str]) -> Chunk:
        """Do as ``file.decode``, in the next child that is idle. Any thread may call it.

        Raises:
            WorkerError: The child was killed.
        """
        child = self._idle.get()
        try:
            answer = _request(child, (file, origin, number, paths))
        finally:
            self._idle.put(child)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A child holds nothing to give back, and what it left half-written will not be believed.
        for child in self._all:
            child.kill()
        for child in self._all:
            child.communicate()


def _request(child: "subprocess.Popen[bytes]", task: object) -> Chunk | Exception:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        pickle.dump(task, child.stdin)
        child.stdin.flush()
        answer: Chunk | Exception = pickle.load(child.stdout)
    except (BrokenPipeError, EOFError, pickle.UnpicklingError):
        end = child.wait()
        how = signal.Signals(-end).name if end < 0 else f"exit code {end}"
        raise WorkerError(
            f"a process that decodes patches was killed ({how}), perhaps for want of memory; run "
            "the same again and it goes on, if need be with a smaller --num-workers"
        ) from None
    return answer


def worker_main() -> None:
    """Decode what standard input asks for, until it ends."""
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Whatever a library prints must not mix with the answers.
    os.dup2(2, 1)
    try:
        while True:
            pickle.dump(_answer(*pickle.load(tasks)), answers)
            answers.flush()
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        # The parent is gone: no clean-up, which would write to its pipe once more.
        os._exit(0)


def _answer(
    file: DecodeCache, origin: PatchStore, number: int, paths: list[str]
) -> Chunk | Exception:
    try:
        return file.decode(origin, number, paths)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        error.add_note(traceback.format_exc())
        return error
