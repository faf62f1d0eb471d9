"""One patch file to pixels, or the reason why not."""

import io
import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from wsi_idc.data.patch_store import MAX_FILE_BYTES, UnreadablePatchError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN_RGB = (8, 2, 0)  # bit depth, colour type, interlace
# What of a PNG OpenCV reads as Pillow does; it turns pictures by eXIf and sees no tRNS.
_PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"tIME", b"tEXt", b"pHYs", b"gAMA", b"cHRM", b"sRGB"}
# What Pillow answers a damaged file with.
_DAMAGED = (
    *(OSError, ValueError, SyntaxError, EOFError, zlib.error, struct.error),
    *(IndexError, KeyError, TypeError, OverflowError, MemoryError),
)
_unpack_head = struct.Struct(">I4s").unpack_from
_unpack_crc = struct.Struct(">I").unpack_from


def decode_png(data: bytes, *, patch_px: int) -> NDArray[np.uint8]:
    """Decode a PNG whose every checksum is right.

    OpenCV decodes plain RGB about twice as fast as Pillow, but gives half a picture for half a
    file; so the chunks are checked first. Anything but plain RGB goes through Pillow.

    Args:
        data: The file's bytes.
        patch_px: Largest side allowed, in px.

    Returns:
        Pixels, shape (height, width, 3), uint8; transparency is laid on white.

    Raises:
        UnreadablePatchError: The bytes are no whole PNG, or the picture is too large.
    """
    kind = _check_size(data, patch_px=patch_px)
    if len(data) > MAX_FILE_BYTES:
        raise UnreadablePatchError(f"more than {MAX_FILE_BYTES} bytes are too many for a patch")
    chunks = _check_chunks(data)
    if kind == _PLAIN_RGB and chunks <= _PLAIN_CHUNKS:
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        except cv2.error:
            pixels = None
        if pixels is not None:
            return pixels
    return _decode_with_pillow(data)


def _check_size(data: bytes, *, patch_px: int) -> tuple[int, int, int]:
    """Return bit depth, colour type and interlace of a PNG of at most ``patch_px`` a side."""
    if not data.startswith(PNG_SIGNATURE):
        raise UnreadablePatchError("not a PNG file" if data else "empty file")
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise UnreadablePatchError("damaged PNG: no header")
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if width > patch_px or height > patch_px:
        raise UnreadablePatchError(
            f"{width}x{height} px is larger than a {patch_px}x{patch_px} patch"
        )
    if depth == 16:
        raise UnreadablePatchError("16 bits a channel; a patch has 8")
    return depth, colour, interlace


def _check_chunks(data: bytes) -> set[bytes]:
    """Return the kinds of chunk up to the end mark, each CRC checked (PNG specification, 5.3)."""
    at = len(PNG_SIGNATURE)
    num_bytes = len(data)
    view = memoryview(data)
    kinds = set()
    while at + 12 <= num_bytes:
        length, kind = _unpack_head(data, at)
        end = at + 8 + length
        if end + 4 > num_bytes:
            break
        if zlib.crc32(view[at + 4 : end]) != _unpack_crc(data, end)[0]:
            raise UnreadablePatchError("damaged PNG: a checksum is wrong")
        kinds.add(kind)
        if kind == b"IEND":
            return kinds
        at = end + 4
    raise UnreadablePatchError("truncated PNG")


def _decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            rgba = image.convert("RGBA")
    except UnidentifiedImageError:
        raise UnreadablePatchError("damaged PNG: the header makes no sense") from None
    except _DAMAGED as error:
        raise UnreadablePatchError(f"damaged PNG: {error}") from None
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
