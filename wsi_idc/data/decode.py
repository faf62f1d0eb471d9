"""Decode all patches of a patch tree with threads or processes; resume the work of a killed run."""

import logging
from array import array
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.errors import DataError, WorkerError
from wsi_idc.core.progress import progress
from wsi_idc.data.decode_cache import (
    FILES_PER_CHUNK,
    Chunk,
    DecodeCache,
    create_worker_pool,
    kill_workers,
)
from wsi_idc.data.patch_index import TreeIndex, readable_duplicates
from wsi_idc.data.patch_store import (
    CANNOT_READ,
    NO_ACCESS,
    UNREADABLE,
    FileIssue,
    FolderStore,
    PatchStore,
)
from wsi_idc.runtime.resources import available_cores

logger = logging.getLogger(__name__)

# Largest default number of workers. More threads would only wait for the interpreter lock.
_MAX_WORKERS = 16
# Smaller folders are decoded in threads, because processes take a third of a second to start.
_MIN_FILES_FOR_PROCESSES = 20_000
# The log names at most this many skipped files; rejected.csv names all skipped files.
_MAX_LOGGED = 20
# If the system denies access to more files than both limits, the disk has probably failed.
_MAX_NO_ACCESS = 10
_MAX_NO_ACCESS_FRACTION = 0.01
Task = tuple[int, list[str]]  # number and files of a chunk


@dataclass
class DecodedTree:
    """Results of decoding a patch tree, without the pixels.

    Attributes:
        paths: For each row of the table of the patch tree, the path of the file that was read.
        is_decoded: For each row of the table, True if the file could be decoded.
        sizes: Height and width of each decoded file in px, in the order of the files.
        crcs: CRC-32 of the bytes of each decoded file.
        issues: Files that could not be decoded.
        num_no_access: Number of files that could not be read and have no readable copy.
        histogram: Counts of the pixel values of each channel, shape (3, 256).
    """

    paths: list[str] = field(default_factory=list)
    is_decoded: list[bool] = field(default_factory=list)
    sizes: array = field(default_factory=lambda: array("B"))
    crcs: array = field(default_factory=lambda: array("L"))
    issues: list[FileIssue] = field(default_factory=list)
    num_no_access: int = 0
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))

    def add(self, paths: list[str], chunk: Chunk) -> None:
        """Append the results of the next chunk; ``paths`` are the files of the chunk."""
        for path, reason in zip(paths, chunk.reasons, strict=True):
            self.is_decoded.append(not reason)
            if reason:
                self.skip(path, reason)
                self.num_no_access += reason.startswith(CANNOT_READ)
        self.paths += paths
        self.sizes.extend(chunk.sizes)
        self.crcs.extend(chunk.crcs)
        self.histogram += np.array(chunk.histogram)

    def table(self, index: TreeIndex) -> pd.DataFrame:
        """Return the rows of ``index.table`` whose file is decoded, with height, width and crc.

        Raises:
            DataError: No file is decoded.
        """
        table = index.table.assign(path=self.paths)[self.is_decoded].reset_index(drop=True)
        if table.empty:
            first = f"{self.issues[0].path}: {self.issues[0].detail}"
            raise DataError(f"{index.store.path}: no patch could be read; first file: {first}")
        height, width = np.array(self.sizes).reshape(-1, 2).T
        return table.assign(height=height, width=width, crc=np.array(self.crcs))

    def skip(self, path: str, reason: str) -> None:
        """Record a file that is left out of the pack; log the first ``_MAX_LOGGED`` files."""
        kind = NO_ACCESS if reason.startswith(CANNOT_READ) else UNREADABLE
        self.issues.append(FileIssue(path, kind, reason))
        if len(self.issues) <= _MAX_LOGGED:
            logger.warning("left out: %r: %s", path, reason)


def decode_tree(index: TreeIndex, cache: DecodeCache, *, num_workers: int | None) -> DecodedTree:
    """Decode the files of a patch tree, and write their pixels to ``cache``.

    The order of the files is the order of the rows of ``index.table``. If a file is damaged and the
    patch tree has an undamaged copy, the copy is decoded. If ``cache`` has chunks of a stopped run,
    a chunk is reused if it is complete and its files are unchanged.

    Raises:
        WorkerError: Many files cannot be read, a folder vanished, or a worker process was killed.
    """
    store, all_paths = index.store, index.table["path"].tolist()
    starts = range(0, len(all_paths), FILES_PER_CHUNK)
    tasks = deque((i, all_paths[start : start + FILES_PER_CHUNK]) for i, start in enumerate(starts))
    result = DecodedTree()

    def add(number: int, paths: list[str], chunk: Chunk) -> None:
        """Append a chunk to the result; if damaged files have copies, first decode the copies."""
        reasons = dict(zip(paths, chunk.reasons, strict=True))
        damaged = [path for path, reason in reasons.items() if reason]
        copies = readable_duplicates(damaged, index.copies, store=store, patch_px=cache.patch_px)
        if copies:
            for path, copy in copies.items():
                result.skip(path, f"{reasons[path]}; its copy {copy} is packed")
            paths = [copies.get(path, path) for path in paths]
            chunk = cache.decode(store, number, paths)
        result.add(paths, chunk)
        if result.num_no_access > max(_MAX_NO_ACCESS, _MAX_NO_ACCESS_FRACTION * len(all_paths)):
            lost = next(issue for issue in reversed(result.issues) if issue.reason == NO_ACCESS)
            raise WorkerError(
                f"{store.path}: {result.num_no_access} files cannot be read, such as {lost.path!r} "
                f"({lost.detail}); make the files readable, and run the same command to resume"
            )

    while tasks and (chunk := cache.read(store, *tasks[0])):
        add(*tasks.popleft(), chunk)
    if num_done := len(result.paths):
        logger.info("resuming after %d patches that a stopped run has decoded", num_done)
    with (
        progress(len(all_paths), what="packing", done=num_done) as bar,
        closing(_decode_chunks(cache, store, tasks, num_workers)) as chunks,
    ):
        for number, paths, chunk in chunks:
            add(number, paths, chunk)
            bar.update(len(paths))
    return result


def _decode_chunks(
    cache: DecodeCache, store: PatchStore, tasks: deque[Task], num_workers: int | None
) -> Generator[tuple[int, list[str], Chunk], None, None]:
    """Decode chunks in a pool; yield the number, the files and the results of each chunk, in order.

    The function removes the chunks from ``tasks``.
    """
    num_workers = num_workers or min(available_cores(), _MAX_WORKERS)
    is_large = len(tasks) * FILES_PER_CHUNK >= _MIN_FILES_FOR_PROCESSES
    # The file list of a zip is too large to send to processes.
    use_processes = is_large and num_workers > 1 and isinstance(store, FolderStore)
    # Threads decode in parallel, because OpenCV releases the interpreter lock.
    pool = create_worker_pool(num_workers) if use_processes else ThreadPoolExecutor(num_workers)
    pending: deque[tuple[Task, Future[Chunk]]] = deque()
    try:
        while tasks or pending:
            while tasks and len(pending) < 2 * num_workers:
                task = tasks.popleft()
                pending.append((task, pool.submit(cache.decode, store, *task)))
            task, future = pending.popleft()
            yield *task, future.result()
    except BrokenProcessPool:
        kill_workers()
        raise WorkerError(
            "a process that decodes patches was killed, perhaps because memory was full; run the "
            "same command again to resume, perhaps with a smaller --num-workers"
        ) from None
    finally:
        # After Ctrl-C the chunks that have not started are dropped.
        pool.shutdown(cancel_futures=True)
