"""Complete processes: their time and memory, and other processes that keep the cores busy."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_KB = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss in bytes


class Usage(NamedTuple):
    """Resources that a process and its children used."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def run_process(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] = os.environ
) -> Usage:
    """Run a command in ``folder``; stop the script if the command fails.

    The memory is the largest resident memory of one process. It is at least the memory that the
    script itself uses.
    """
    with (folder / "log.txt").open("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"Error: a program failed: {' '.join(map(str, command))}\n{log.read()}")
    return Usage(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * _KB / 1e6)


@contextmanager
def busy_processes(num: int) -> Iterator[None]:
    """Context manager: ``num`` other processes compute without a pause."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(num)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
