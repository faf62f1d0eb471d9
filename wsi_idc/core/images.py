"""Errors that Pillow and tifffile raise on a damaged image."""

import struct
import zlib

DAMAGED_IMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, zlib.error, struct.error, OverflowError),
    *(KeyError, IndexError, TypeError, AttributeError, MemoryError),
)
