"""Patches decoded chunk by chunk, in a file that survives the process that writes it.

The file is a row of records, each with a checksum over all of it: what a killed run left is proved
before it is used. A record also holds the state of the files it was decoded from.
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_idc.data.decode import decode_png
from wsi_idc.data.origin import Origin, UnreadablePatchError
from wsi_idc.data.statistics import channel_histogram

_FORMAT = 1
_HEAD = struct.Struct("<8sIII")
_MAGIC = b"WSIchunk"


@dataclass(frozen=True)
class Chunk:
    """What some files hold.

    Attributes:
        state: Digest of names and states of the files, and of how they are decoded.
        reasons: For each file, why it was left out, empty if it was not.
        sizes: Height and width before padding, px, of each good file.
        crcs: CRC-32 of each good file's bytes.
        histogram: Of the pixels, shape (3, 256).
        pixels: The good ones, padded white, shape (n, patch_px, patch_px, 3).
    """

    state: str
    reasons: list[str]
    sizes: list[tuple[int, int]]
    crcs: list[int]
    histogram: NDArray[np.int64]
    pixels: NDArray[np.uint8]


def state_of(origin: Origin, paths: list[str], *, patch_px: int) -> str:
    """Return what must be equal for a chunk of these files to be still true."""
    digest = hashlib.sha256(f"{_FORMAT} {cv2.__version__} {patch_px}\n".encode())
    for path in paths:
        digest.update(f"{path}\0{origin.state(path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def decode_chunk(origin: Origin, paths: list[str], *, patch_px: int) -> Chunk:
    """Read and decode files."""
    # Before the bytes: a file that changes in between is decoded again by a run that goes on.
    state = state_of(origin, paths, patch_px=patch_px)
    padded = np.full((len(paths), patch_px, patch_px, 3), 255, np.uint8)
    reasons = [""] * len(paths)
    sizes: list[tuple[int, int]] = []
    crcs = []
    for at, path in enumerate(paths):
        try:
            data = origin.read(path)
            pixels = decode_png(data, patch_px=patch_px)
        except UnreadablePatchError as error:
            reasons[at] = str(error)
            continue
        height, width, _ = pixels.shape
        padded[len(sizes), :height, :width] = pixels
        sizes.append((height, width))
        crcs.append(zlib.crc32(data))
    padded = padded[: len(sizes)]
    return Chunk(state, reasons, sizes, crcs, channel_histogram(padded), padded)


def write_chunk(file: BinaryIO, chunk: Chunk) -> None:
    """Append a record."""
    about = {
        "state": chunk.state,
        "reasons": chunk.reasons,
        "sizes": chunk.sizes,
        "crcs": chunk.crcs,
        "histogram": chunk.histogram.tolist(),
    }
    text = json.dumps(about).encode()
    crc = zlib.crc32(chunk.pixels.data, zlib.crc32(text))
    file.write(_HEAD.pack(_MAGIC, len(text), len(chunk.sizes), crc) + text)
    file.write(chunk.pixels.data)


def read_chunks(file: BinaryIO, *, patch_px: int) -> Iterator[Chunk]:
    """Yield the records of a file up to its end, or to the first that is not whole.

    After each, the file stands at the record's end.
    """
    end = os.fstat(file.fileno()).st_size
    while True:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return
        magic, num_text, num_patches, crc = _HEAD.unpack(head)
        num_pixels = num_patches * patch_px * patch_px * 3
        # Before anything is allocated: what the file cannot hold is no record.
        if magic != _MAGIC or file.tell() + num_text + num_pixels > end:
            return
        text, data = file.read(num_text), file.read(num_pixels)
        if zlib.crc32(data, zlib.crc32(text)) != crc:
            return
        about = json.loads(text)
        pixels = np.frombuffer(data, np.uint8).reshape(-1, patch_px, patch_px, 3)
        sizes = [(height, width) for height, width in about["sizes"]]
        histogram = np.array(about["histogram"], np.int64)
        yield Chunk(about["state"], about["reasons"], sizes, about["crcs"], histogram, pixels)


def read_pixels(file: BinaryIO, *, patch_px: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of each record of a file that this process wrote or proved."""
    while head := file.read(_HEAD.size):
        _, num_text, num_patches, _ = _HEAD.unpack(head)
        file.seek(num_text, os.SEEK_CUR)
        data = file.read(num_patches * patch_px * patch_px * 3)
        yield np.frombuffer(data, np.uint8).reshape(-1, patch_px, patch_px, 3)
