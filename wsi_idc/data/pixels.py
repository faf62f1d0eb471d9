"""Decode the PNG files of patches, and compute statistics of the pixel values."""

import io
import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from wsi_idc.core.errors import DAMAGED_IMAGE
from wsi_idc.data.patch_store import MAX_FILE_BYTES, PatchStore, UnreadablePatchError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN_RGB = (8, 2, 0)  # bit depth, color type, interlace
# OpenCV and Pillow give the same pixels for a PNG with only these chunks. With other chunks the
# pixels may differ: OpenCV rotates an image by eXIf and ignores tRNS.
_PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"tIME", b"tEXt", b"pHYs", b"gAMA", b"cHRM", b"sRGB"}
# OpenCV counts in float32, which is exact for integers up to 2**24.
_MAX_PIXELS = 2**24
_unpack_chunk_head = struct.Struct(">I4s").unpack_from
_unpack_crc = struct.Struct(">I").unpack_from


def decode_png(data: bytes, *, patch_px: int) -> NDArray[np.uint8]:
    """Decode a PNG and verify every checksum.

    OpenCV decodes plain RGB images, about twice as fast as Pillow. Pillow decodes all other images.
    OpenCV returns a partial image for a truncated file, so the PNG chunks are checked first.

    Args:
        data: Bytes of the file.
        patch_px: Largest side allowed, in px.

    Returns:
        RGB pixels, shape (height, width, 3), uint8. Transparent pixels are drawn on white.

    Raises:
        UnreadablePatchError: The bytes are not a complete PNG, or the image is too large.
    """
    header = _check_header(data, patch_px=patch_px)
    if len(data) > MAX_FILE_BYTES:
        raise UnreadablePatchError(f"more than {MAX_FILE_BYTES} bytes, too large for a patch")
    chunks = _check_chunks(data)
    if header == _PLAIN_RGB and chunks <= _PLAIN_CHUNKS:
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        except cv2.error:
            pixels = None
        if pixels is not None:
            return pixels
    return _decode_with_pillow(data)


def is_decodable(store: PatchStore, path: str, patch_px: int) -> bool:
    """Return whether a file can be read and decoded."""
    try:
        decode_png(store.read(path)[0], patch_px=patch_px)
    except UnreadablePatchError:
        return False
    return True


def channel_histogram(patches: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the pixel values of each channel of patches.

    Args:
        patches: Patches, shape (N, h, w, 3), uint8.

    Returns:
        Number of pixels with each value, shape (3, 256).
    """
    pixels = patches.reshape(-1, 1, 3)
    histogram = np.zeros((3, 256), np.int64)
    for start in range(0, len(pixels), _MAX_PIXELS):
        block = pixels[start : start + _MAX_PIXELS]
        for channel, counts in enumerate(histogram):
            counts += cv2.calcHist([block], [channel], None, [256], [0, 256]).ravel().astype(int)
    return histogram


def channel_statistics(histogram: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the mean and the standard deviation (0..1) of each channel.

    ``histogram`` is the result of ``channel_histogram``.
    """
    values = np.arange(256) / 255
    frequency = histogram / histogram.sum(axis=1, keepdims=True)
    mean = frequency @ values
    # Do not use the mean of squares minus the square of the mean: it can be below 0.
    std = np.sqrt((frequency * (values - mean[:, None]) ** 2).sum(axis=1))
    return tuple(map(float, mean)), tuple(map(float, std))


def _check_header(data: bytes, *, patch_px: int) -> tuple[int, int, int]:
    """Check the header of a PNG; return its bit depth, color type and interlace method."""
    if not data.startswith(PNG_SIGNATURE):
        raise UnreadablePatchError("not a PNG file" if data else "empty file")
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise UnreadablePatchError("damaged PNG: no header")
    width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if width > patch_px or height > patch_px:
        raise UnreadablePatchError(
            f"{width}x{height} px is larger than a {patch_px}x{patch_px} patch; "
            "see --patch-px of prepare"
        )
    if depth == 16:
        raise UnreadablePatchError("16 bits per channel instead of 8")
    return depth, color, interlace


def _check_chunks(data: bytes) -> set[bytes]:
    """Check the CRC of each PNG chunk up to the chunk IEND; return the types of the chunks.

    Section 5.3 of the PNG specification defines the chunks.
    """
    start, num_bytes, view = len(PNG_SIGNATURE), len(data), memoryview(data)
    types = set()
    while start + 12 <= num_bytes:
        length, chunk_type = _unpack_chunk_head(data, start)
        end = start + 8 + length
        if end + 4 > num_bytes:
            break
        if zlib.crc32(view[start + 4 : end]) != _unpack_crc(data, end)[0]:
            raise UnreadablePatchError("damaged PNG: a checksum is wrong")
        types.add(chunk_type)
        if chunk_type == b"IEND":
            return types
        start = end + 4
    raise UnreadablePatchError("truncated PNG")


def _decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            rgba = image.convert("RGBA")
    except UnidentifiedImageError:
        raise UnreadablePatchError("damaged PNG: the header is not valid") from None
    except MemoryError:
        raise
    except DAMAGED_IMAGE as error:
        raise UnreadablePatchError(f"damaged PNG: {error}") from None
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
