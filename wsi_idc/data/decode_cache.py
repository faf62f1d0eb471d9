"""Patches decoded chunk by chunk, in a file that survives the process that writes it.

Each chunk has its place in the file, so threads and processes write theirs side by side. What
stands there is a record with a checksum over all of it: what a killed run left is proved before it
is used. A record also holds the state of the files it was decoded from.
"""

import hashlib
import itertools
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_idc.data.normalization import channel_histogram
from wsi_idc.data.patch_index import is_decodable
from wsi_idc.data.patch_store import PatchStore, UnreadablePatchError
from wsi_idc.data.png import decode_png

FILES_PER_CHUNK = 128
_FORMAT = 2
_HEAD = struct.Struct("<8sIII")
_MAGIC = b"WSIchunk"
# A bound for the reasons makes one for the record's text. What is not used of its room is a hole
# in the file.
_MAX_REASON = 100
_TEXT_BYTES = 2**18


@dataclass(frozen=True)
class Chunk:
    """What some files hold, but for the pixels.

    Attributes:
        state: Digest of names and states of the files, and of how they are decoded.
        reasons: For each file, why it was left out, empty if it was not.
        sizes: Height and width before padding, px, of each good file, one after the other.
        crcs: CRC-32 of each good file's bytes.
        histogram: Of the good files' pixels, three rows of 256 counts.
    """

    state: str
    reasons: list[str]
    sizes: list[int]
    crcs: list[int]
    histogram: list[list[int]]


@dataclass(frozen=True)
class DecodeCache:
    """The file at ``path``, with a place for each chunk of patches of ``patch_px`` a side."""

    path: Path
    patch_px: int

    def decode(self, origin: PatchStore, number: int, paths: list[str]) -> Chunk:
        """Decode the files of chunk ``number``, and write the chunk to its place."""
        padded = np.full((len(paths), self.patch_px, self.patch_px, 3), 255, np.uint8)
        states, reasons = [""] * len(paths), [""] * len(paths)
        sizes: list[int] = []
        crcs: list[int] = []
        for at, path in enumerate(paths):
            try:
                try:
                    data, states[at] = origin.read(path)
                except UnreadablePatchError:
                    # Its state first, then once more: by now it may be there.
                    states[at] = origin.state(path)
                    data, _ = origin.read(path)
                pixels = decode_png(data, patch_px=self.patch_px)
            except UnreadablePatchError as error:
                reasons[at] = str(error)[:_MAX_REASON]
                continue
            height, width, _ = pixels.shape
            padded[len(crcs), :height, :width] = pixels
            sizes += (height, width)
            crcs.append(zlib.crc32(data))
        padded = padded[: len(crcs)]
        histogram = channel_histogram(padded).tolist()
        chunk = Chunk(self._digest(paths, states), reasons, sizes, crcs, histogram)
        self._write(number, chunk, padded)
        return chunk

    def read(self, origin: PatchStore, number: int, paths: list[str]) -> Chunk | None:
        """Return chunk ``number`` if it stands in its place, whole, and true of the files now.

        A file's state tells nothing of rights, and of a disk that had an error: what was left out
        is tried again.
        """
        with self.path.open("rb") as file:
            file.seek(self._place(number))
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return None
            magic, num_text, num_patches, crc = _HEAD.unpack(head)
            # Before anything is allocated.
            if magic != _MAGIC or num_text > _TEXT_BYTES or num_patches > FILES_PER_CHUNK:
                return None
            text, pixels = file.read(num_text), file.read(num_patches * self._patch_bytes)
        if zlib.crc32(pixels, zlib.crc32(text)) != crc:
            return None
        chunk = Chunk(**json.loads(text))
        states = [origin.state(path) for path in paths]
        if chunk.state != self._digest(paths, states):
            return None
        left_out = itertools.compress(paths, chunk.reasons)
        return (
            None if any(is_decodable(origin, path, self.patch_px) for path in left_out) else chunk
        )

    def pixels(self, num_files: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the good files' pixels, padded white, of all chunks, each decoded or read before.

        Each is of shape (n, patch_px, patch_px, 3), in memory that the next one overwrites.
        """
        shape = (FILES_PER_CHUNK, self.patch_px, self.patch_px, 3)
        room = np.empty(shape, np.uint8)
        with self.path.open("rb") as file:
            for number in range(math.ceil(num_files / FILES_PER_CHUNK)):
                file.seek(self._place(number))
                _, num_text, num_patches, _ = _HEAD.unpack(file.read(_HEAD.size))
                file.seek(num_text, os.SEEK_CUR)
                block = room[:num_patches]
                if file.readinto(block.data) != block.nbytes:
                    raise ValueError(f"chunk {number} is cut short")
                yield block

    @property
    def _patch_bytes(self) -> int:
        return self.patch_px**2 * 3

    def _place(self, number: int) -> int:
        return number * (_HEAD.size + _TEXT_BYTES + FILES_PER_CHUNK * self._patch_bytes)

    def _write(self, number: int, chunk: Chunk, pixels: NDArray[np.uint8]) -> None:
        text = json.dumps(vars(chunk)).encode()
        assert len(text) <= _TEXT_BYTES
        crc = zlib.crc32(pixels.data, zlib.crc32(text))
        with self.path.open("r+b") as file:
            file.seek(self._place(number))
            file.write(_HEAD.pack(_MAGIC, len(text), len(pixels), crc) + text)
            file.write(pixels.data)

    def _digest(self, paths: list[str], states: list[str]) -> str:
        """Return what must be equal for a chunk of files in these states to be still true."""
        lines = [f"{path}\0{state}\n" for path, state in zip(paths, states, strict=True)]
        about = f"{_FORMAT} {cv2.__version__} {self.patch_px}\n" + "".join(lines)
        return hashlib.sha256(about.encode("utf-8", "surrogateescape")).hexdigest()
