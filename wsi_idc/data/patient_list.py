"""Text files of patient ids."""

import re
from pathlib import Path

from wsi_idc.core.errors import DataError

_REMEDY = "give a text file with an id on each line"


def read_patients(path: Path) -> list[str]:
    """Read the patient ids in a text file, one per line; text after # is a comment.

    Raises:
        DataError: The file cannot be read or lists no patient.
    """
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise DataError(f"{path}: not a regular file; {_REMEDY}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {_REMEDY}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file; {_REMEDY}") from None
    # A # within a word is part of an id.
    ids = [patient for line in lines if (patient := re.split(r"(?:^|\s)#", line)[0].strip())]
    if not ids:
        raise DataError(f"{path}: lists no patient; give an id on each line")
    return ids
