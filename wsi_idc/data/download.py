"""Bring the data set from Kaggle, and remember where it lies.

kagglehub does the transfer: it keeps its cache (``KAGGLEHUB_CACHE``), goes on with a download that
was cut short, checks it and unpacks it.
"""

import contextlib
import errno
import json
import logging
import os
import sys
import tarfile
import zipfile
from pathlib import Path

from wsi_idc.core.errors import DataError, WsiIdcError, first_line
from wsi_idc.core.files import write_json

logger = logging.getLogger(__name__)

HANDLE = "paultimothymooney/breast-histopathology-images"
PAGE = f"https://www.kaggle.com/datasets/{HANDLE}"
SOURCE_FILE = "source.json"
_BY_HAND = f"or get the archive by hand from {PAGE}, then: wsi-idc prepare ARCHIVE.zip"
_DENIED = (401, 403)


def download(folder: Path) -> Path:
    """Download the data set, if kagglehub has not got it, and note in ``folder`` where it lies.

    Raises:
        WsiIdcError: No credentials, no network, no space, or Kaggle has something else to say;
            each with what to do.
    """
    # kagglehub writes its messages where standard output is when it is imported.
    with contextlib.redirect_stdout(sys.stderr):
        path = _transfer()
    write_json(folder / SOURCE_FILE, {"handle": HANDLE, "path": str(path.resolve())})
    return path


def downloaded(folder: Path) -> Path | None:
    """Return where the download that ``folder`` remembers lies, None where there was none.

    Raises:
        DataError: It is there no more, or the note cannot be read.
    """
    note = folder / SOURCE_FILE
    try:
        path = Path(json.loads(note.read_text(encoding="utf-8"))["path"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{note}: not readable; run wsi-idc download, or give TREE") from None
    if not path.exists():
        raise DataError(
            f"{path}: no such folder, though {note} names it; run wsi-idc download, or give TREE"
        )
    return path


def _transfer() -> Path:
    import kagglehub
    import requests
    from kagglehub import exceptions

    logger.info("downloading %s", PAGE)
    try:
        return Path(kagglehub.dataset_download(HANDLE))
    except (exceptions.UnauthenticatedError, exceptions.CredentialError) as error:
        raise _no_credentials(error) from None
    # Of requests, every exception is an OSError too.
    except requests.exceptions.RequestException as error:
        answer = getattr(error, "response", None)
        if answer is None:
            raise WsiIdcError(
                f"no network: Kaggle cannot be reached ({_short(error)}); run again where there is "
                f"internet, and it goes on where it was, {_BY_HAND}"
            ) from None
        if answer.status_code in _DENIED:
            raise _no_credentials(error) from None
        raise WsiIdcError(f"Kaggle answers {answer.status_code}; try later, {_BY_HAND}") from None
    except (exceptions.BackendError, exceptions.DataCorruptionError) as error:
        raise WsiIdcError(f"download failed: {_short(error)}; run again, {_BY_HAND}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise WsiIdcError(
            f"no space in {_cache()} for some 7 GB; free some and run again, or set KAGGLEHUB_CACHE"
            f" to a larger disk, {_BY_HAND}"
        ) from None
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise _damaged(error) from None
    except ValueError as error:
        if "credentials" in str(error):
            raise _no_credentials(error) from None
        raise _damaged(error) from None


def _no_credentials(error: Exception) -> WsiIdcError:
    return WsiIdcError(
        f"no credentials that Kaggle accepts ({_short(error)}); put a token from "
        "https://www.kaggle.com/settings into ~/.kaggle/access_token or KAGGLE_API_TOKEN, "
        f"{_BY_HAND}"
    )


def _damaged(error: Exception) -> WsiIdcError:
    return WsiIdcError(
        f"what arrived is no archive ({_short(error)}); remove {_cache()}/datasets/{HANDLE} and "
        f"run again, {_BY_HAND}"
    )


def _cache() -> str:
    return os.environ.get("KAGGLEHUB_CACHE") or "~/.cache/kagglehub"


def _short(error: Exception) -> str:
    return first_line(error)[:160]
