"""Read annotation files; the content of a file determines its format, the name does not."""

import gzip
import json
import zlib
from pathlib import Path
from xml.etree import ElementTree

from wsi_idc.core.errors import SlideError, first_line
from wsi_idc.core.files import regular_file
from wsi_idc.slides.outlines import FORMATS, AnnotationFile
from wsi_idc.slides.outlines_geojson import parse_geojson
from wsi_idc.slides.outlines_xml import parse_xml

_MAX_BYTES = 512 * 10**6
_GZIP = b"\x1f\x8b"


def parse_file(path: Path) -> AnnotationFile:
    """Parse an annotation file; a file with gzip compression is decompressed.

    Raises:
        SlideError: The file cannot be read, is too large, or its content is not valid.
    """
    data = _read(path)
    start = data[:64].lstrip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n")[:1]
    try:
        if start in (b"{", b"["):
            return parse_geojson(data)
        if start == b"<":
            return parse_xml(data)
    except SlideError as error:
        raise SlideError(f"{path}: {error}") from None
    except (json.JSONDecodeError, UnicodeError, ElementTree.ParseError) as error:
        raise SlideError(
            f"{path}: damaged or cut short ({first_line(error)}); export the annotations again"
        ) from None
    except RecursionError:
        raise SlideError(f"{path}: nested too deep; export the annotations again") from None
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise SlideError(f"{path}: {first_line(error)}; export the annotations again") from None
    raise SlideError(f"{path}: not an annotation file; give {FORMATS}")


def _read(path: Path) -> bytes:
    try:
        with regular_file(path, _MAX_BYTES).open("rb") as file:
            is_compressed = file.read(2) == _GZIP
            file.seek(0)
            if not is_compressed:
                return file.read()
            with gzip.open(file) as content:
                data = content.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise SlideError(f"{path}: no such file; give {FORMATS}") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = first_line(error)
        raise SlideError(f"{path}: cannot be read ({reason}); give {FORMATS}") from None
    if len(data) > _MAX_BYTES:
        raise SlideError(f"{path}: larger than {_MAX_BYTES / 1e6:g} MB; simplify the outlines")
    return data
