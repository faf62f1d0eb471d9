"""Worker processes, and the cache file into which the processes decode patches.

The cache file has chunks of ``FILES_PER_CHUNK`` patches. Each chunk has a fixed position in the
file, so that threads and processes can write chunks in parallel. After a killed run, the next run
reads the complete chunks from the cache file. A checksum of each chunk shows whether the chunk is
complete. A digest in each chunk shows whether the patch files are unchanged.
"""

import hashlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_idc.data.patch_store import PatchStore, UnreadablePatchError
from wsi_idc.data.pixels import channel_histogram, decode_png, is_decodable
from wsi_idc.runtime.signals import STOP_SIGNALS

FILES_PER_CHUNK = 128
_FORMAT = 2
_HEADER = struct.Struct("<8sIII")
_MAGIC = b"WSIchunk"
# A chunk's text fits into _TEXT_BYTES, even if all reasons are long. Unused bytes of the file take
# no disk space, because the file is sparse.
_MAX_REASON = 100
_TEXT_BYTES = 2**18


@dataclass(frozen=True)
class Chunk:
    """Results of decoding the files of one chunk, without the pixels.

    Attributes:
        state: Hexadecimal digest of the decoder's version and of the path, size and time of each
            file.
        reasons: For each file, the reason why the file was skipped; empty for a decoded file.
        sizes: Height and width of each decoded file in px before padding, two numbers for each
            file.
        crcs: CRC-32 of the bytes of each decoded file.
        histogram: Counts of the pixel values of each channel, 3 rows of 256.
    """

    state: str
    reasons: list[str]
    sizes: list[int]
    crcs: list[int]
    histogram: list[list[int]]


@dataclass(frozen=True)
class DecodeCache:
    """Cache file with decoded patches.

    Attributes:
        path: Path of the cache file.
        patch_px: Side of a patch in px.
    """

    path: Path
    patch_px: int

    def decode(self, store: PatchStore, number: int, paths: list[str]) -> Chunk:
        """Decode the files of chunk ``number`` and write the chunk to the cache file."""
        padded = np.full((len(paths), self.patch_px, self.patch_px, 3), 255, np.uint8)
        stat_keys, reasons = [""] * len(paths), [""] * len(paths)
        sizes: list[int] = []
        crcs: list[int] = []
        for i, path in enumerate(paths):
            try:
                try:
                    data, stat_keys[i] = store.read(path)
                except UnreadablePatchError:
                    # Get the key, then try to read the file again: it may be readable now.
                    stat_keys[i] = store.stat_key(path)
                    data, _ = store.read(path)
                pixels = decode_png(data, patch_px=self.patch_px)
            except UnreadablePatchError as error:
                reasons[i] = str(error)[:_MAX_REASON]
                continue
            height, width, _ = pixels.shape
            padded[len(crcs), :height, :width] = pixels
            sizes += (height, width)
            crcs.append(zlib.crc32(data))
        padded = padded[: len(crcs)]
        histogram = channel_histogram(padded).tolist()
        chunk = Chunk(self._digest(paths, stat_keys), reasons, sizes, crcs, histogram)
        text = json.dumps(vars(chunk)).encode()
        assert len(text) <= _TEXT_BYTES
        crc = zlib.crc32(padded.data, zlib.crc32(text))
        with self.path.open("r+b") as file:
            file.seek(self._offset(number))
            file.write(_HEADER.pack(_MAGIC, len(text), len(padded), crc) + text)
            file.write(padded.data)
        return chunk

    def read(self, store: PatchStore, number: int, paths: list[str]) -> Chunk | None:
        """Read chunk ``number``; return None if its files must be decoded again.

        The files must be decoded again if the chunk is not complete, if a file has changed, or if a
        skipped file can be decoded now. A skipped file can become readable without a new size or
        time, because a user changes permissions or a disk works again.
        """
        with self.path.open("rb") as file:
            file.seek(self._offset(number))
            header = file.read(_HEADER.size).ljust(_HEADER.size, b"\0")
            magic, num_text, num_patches, crc = _HEADER.unpack(header)
            # Check both lengths before memory is allocated for the text and the pixels.
            if magic != _MAGIC or num_text > _TEXT_BYTES or num_patches > FILES_PER_CHUNK:
                return None
            text, pixels = file.read(num_text), file.read(num_patches * self.patch_px**2 * 3)
        if zlib.crc32(pixels, zlib.crc32(text)) != crc:
            return None
        chunk = Chunk(**json.loads(text))
        if chunk.state != self._digest(paths, [store.stat_key(path) for path in paths]):
            return None
        skipped = itertools.compress(paths, chunk.reasons)
        return None if any(is_decodable(store, path, self.patch_px) for path in skipped) else chunk

    def pixels(self, num_files: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels of each chunk, shape (n, patch_px, patch_px, 3), uint8.

        Small patches are padded with white.

        Args:
            num_files: Number of files of all chunks. The cache file must have all these chunks.
        """
        with self.path.open("rb") as file:
            for number in range(math.ceil(num_files / FILES_PER_CHUNK)):
                file.seek(self._offset(number))
                _, num_text, num_patches, _ = _HEADER.unpack(file.read(_HEADER.size))
                file.seek(num_text, os.SEEK_CUR)
                pixels = np.fromfile(file, np.uint8, num_patches * self.patch_px**2 * 3)
                yield pixels.reshape(num_patches, self.patch_px, self.patch_px, 3)

    def _offset(self, number: int) -> int:
        return number * (_HEADER.size + _TEXT_BYTES + FILES_PER_CHUNK * self.patch_px**2 * 3)

    def _digest(self, paths: list[str], stat_keys: list[str]) -> str:
        lines = [f"{path}\0{key}\n" for path, key in zip(paths, stat_keys, strict=True)]
        text = f"{_FORMAT} {cv2.__version__} {self.patch_px}\n" + "".join(lines)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def create_worker_pool(num_workers: int) -> ProcessPoolExecutor:
    """Create a pool of processes that start on demand and end with their parent.

    The processes ignore stop signals.
    """
    return ProcessPoolExecutor(num_workers, _WorkerContext(), _exit_with_parent)


def kill_workers() -> None:
    """Kill all processes of worker pools.

    If a process dies, the pool kills its other processes. But the pool does not kill a process that
    is just starting, and would wait for this process forever.
    """
    for process in multiprocessing.active_children():
        if isinstance(process, _WorkerProcess):
            process.kill()


class _WorkerProcess(SpawnProcess):
    def start(self) -> None:
        # Terminals and schedulers also send signals to child processes, but only the parent process
        # handles signals. Signals that are blocked here stay blocked in the child process.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        # A spawned process would import the main module of its parent, so hide this module.
        main_module = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        except OSError as error:
            if error.errno is not None:
                raise
            # The pool closed its queue, because another worker was killed.
            raise BrokenProcessPool(str(error)) from None
        finally:
            sys.modules["__main__"] = main_module
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def terminate(self) -> None:
        # If one worker was killed, the pool terminates the others. SIGTERM is blocked in workers.
        self.kill()


class _WorkerContext(SpawnContext):
    Process = _WorkerProcess


def _exit_with_parent() -> None:
    """Start a thread that ends this process when the parent process ends or is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
