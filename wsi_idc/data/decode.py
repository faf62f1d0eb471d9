"""Decode every patch of a tree, chunk by chunk, in threads or processes, and go on where it was."""

import logging
from array import array
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.progress import progress
from wsi_idc.data.children import DecodeWorkerPool
from wsi_idc.data.decode_cache import FILES_PER_CHUNK, Chunk, DecodeCache
from wsi_idc.data.patch_index import TreeIndex, readable_duplicates
from wsi_idc.data.patch_store import UNREADABLE, FileIssue, FolderStore, PatchStore
from wsi_idc.runtime.resources import available_cores

logger = logging.getLogger(__name__)

# More threads would only wait for the interpreter.
_MAX_WORKERS = 16
# Processes wait for none, but take a third of a second to start.
_MIN_FILES_FOR_PROCESSES = 20_000
# Of the files left out, the log names this many and rejected.csv all.
_MAX_LOGGED = 20


@dataclass
class Decoded:
    """What decoding found.

    For each row of the tree's table ``paths``, what was read, and ``good``; the rest for good rows.
    """

    paths: list[str] = field(default_factory=list)
    good: list[bool] = field(default_factory=list)
    sizes: array = field(default_factory=lambda: array("B"))  # height, width, height, ...
    crcs: array = field(default_factory=lambda: array("L"))
    problems: list[FileIssue] = field(default_factory=list)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))

    def add(self, paths: list[str], chunk: Chunk) -> None:
        """Add what the next chunk of paths holds."""
        for path, reason in zip(paths, chunk.reasons, strict=True):
            self.good.append(not reason)
            if reason:
                self.leave_out(path, reason)
        self.paths += paths
        self.sizes.extend(chunk.sizes)
        self.crcs.extend(chunk.crcs)
        self.histogram += np.array(chunk.histogram)

    def leave_out(self, path: str, why: str) -> None:
        """Note that a file is not what is packed."""
        self.problems.append(FileIssue(path, UNREADABLE, why))
        if len(self.problems) <= _MAX_LOGGED:
            logger.warning("left out: %r: %s", path, why)


def decode_tree(index: TreeIndex, file: DecodeCache, *, num_workers: int | None) -> Decoded:
    """Decode every file of the table, or a whole copy of it, in order, into ``file``.

    What it holds already, from a run that was stopped, is kept as far as it is whole and the files
    are as they were.
    """
    paths = index.table["path"].tolist()
    chunks = [paths[at : at + FILES_PER_CHUNK] for at in range(0, len(paths), FILES_PER_CHUNK)]
    tasks = deque(enumerate(chunks))
    result = Decoded()
    while tasks and (chunk := file.read(index.origin, *tasks[0])):
        _add(result, index, file, *tasks.popleft(), chunk)
    done = len(result.good)
    if done:
        logger.info("going on after %d patches that a stopped run has decoded", done)
    with (
        progress(len(paths), what="packing", done=done) as bar,
        closing(_decode_ahead(file, index.origin, tasks, num_workers)) as decoded,
    ):
        for number, names, chunk in decoded:
            _add(result, index, file, number, names, chunk)
            bar.update(len(names))
    return result


def _add(
    result: Decoded,
    index: TreeIndex,
    file: DecodeCache,
    number: int,
    paths: list[str],
    chunk: Chunk,
) -> None:
    """Add a chunk, decoded again with their copies where damaged files have whole ones."""
    damaged = {path: why for path, why in zip(paths, chunk.reasons, strict=True) if why}
    copies = readable_duplicates(
        damaged.keys(), index.copies, origin=index.origin, patch_px=file.patch_px
    )
    if copies:
        for path, copy in copies.items():
            result.leave_out(path, f"{damaged[path]}; its copy {copy} is packed")
        paths = [copies.get(path, path) for path in paths]
        chunk = file.decode(index.origin, number, paths)
    result.add(paths, chunk)


def _decode_ahead(
    file: DecodeCache,
    origin: PatchStore,
    tasks: deque[tuple[int, list[str]]],
    num_workers: int | None,
) -> Generator[tuple[int, list[str], Chunk], None, None]:
    """Decode chunks of files, and yield each with its number and files, in order."""
    workers = num_workers or min(available_cores(), _MAX_WORKERS)
    many = len(tasks) * FILES_PER_CHUNK >= _MIN_FILES_FOR_PROCESSES
    # A zip's table of contents is too much to send.
    in_processes = many and workers > 1 and isinstance(origin, FolderStore)
    with DecodeWorkerPool(workers) if in_processes else nullcontext() as children:
        # OpenCV decodes without the interpreter lock.
        decode = children.decode if children else DecodeCache.decode
        pool = ThreadPoolExecutor(workers)
        try:
            ahead: deque[tuple[int, list[str], Future[Chunk]]] = deque()
            while tasks or ahead:
                while tasks and len(ahead) < 2 * workers:
                    number, paths = tasks.popleft()
                    future = pool.submit(decode, file, origin, number, paths)
                    ahead.append((number, paths, future))
                number, paths, future = ahead.popleft()
                yield number, paths, future.result()
        finally:
            # After Ctrl-C nobody waits for what lies ahead.
            pool.shutdown(cancel_futures=True)
