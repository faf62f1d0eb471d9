"""Download of the data set from Kaggle with kagglehub.

kagglehub downloads the archive into its own cache folder, checks the archive and unpacks it. The
environment variable ``KAGGLEHUB_CACHE`` can name this folder. kagglehub resumes an interrupted
download. The file ``source.json`` in the data folder records the path of the unpacked data set.
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
from wsi_idc.core.files import regular_file, write_json

logger = logging.getLogger(__name__)

HANDLE = "paultimothymooney/breast-histopathology-images"
PAGE = f"https://www.kaggle.com/datasets/{HANDLE}"
SOURCE_FILE = "source.json"


def download(folder: Path) -> Path:
    """Download the data set, and record its path in ``source.json`` in ``folder``.

    If kagglehub's cache has the data set already, nothing is downloaded.

    Returns:
        Path of the data set.

    Raises:
        WsiIdcError: Kaggle refuses the download or cannot be reached, the disk is full, or the
            downloaded zip is damaged.
    """
    # When kagglehub is imported, it keeps the current ``sys.stdout`` for all its messages.
    with contextlib.redirect_stdout(sys.stderr):
        path = _download_with_kagglehub()
    write_json(folder / SOURCE_FILE, {"handle": HANDLE, "path": str(path.resolve())})
    return path


def read_download_path(folder: Path) -> Path | None:
    """Read the path of the downloaded data set from ``source.json`` in ``folder``.

    Return None if this file does not exist.

    Raises:
        DataError: The data set does not exist any more, or ``source.json`` cannot be read.
    """
    record = folder / SOURCE_FILE
    try:
        path = Path(json.loads(regular_file(record).read_text(encoding="utf-8"))["path"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{record}: not readable; run wsi-idc download, or give TREE") from None
    if not path.exists():
        raise DataError(
            f"{path}: no such folder, but {record} names it; run wsi-idc download, or give TREE"
        )
    return path


def _download_with_kagglehub() -> Path:
    import kagglehub
    from kagglehub import exceptions

    no_credentials = (exceptions.UnauthenticatedError, exceptions.CredentialError)
    no_archive = (zipfile.BadZipFile, tarfile.TarError, ValueError)
    failed = (exceptions.BackendError, exceptions.DataCorruptionError, OSError)
    cache = os.environ.get("KAGGLEHUB_CACHE") or "~/.cache/kagglehub"
    logger.info("downloading %s", PAGE)
    try:
        return Path(kagglehub.dataset_download(HANDLE))
    except (*no_credentials, *no_archive, *failed) as error:
        # Exceptions of the package requests are OSErrors. They have a status if Kaggle answered.
        status = getattr(getattr(error, "response", None), "status_code", None)
        is_refused = isinstance(error, no_credentials) or status in (401, 403)
        if is_refused or (isinstance(error, ValueError) and "credentials" in str(error)):
            advice = (
                "put a token from https://www.kaggle.com/settings into ~/.kaggle/access_token or "
                "KAGGLE_API_TOKEN"
            )
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = f"free 7 GB in {cache}, or set KAGGLEHUB_CACHE to a larger disk"
        elif isinstance(error, no_archive) and status is None:
            advice = f"remove {cache}/datasets/{HANDLE} and run again"
        else:
            advice = "run again with internet access to resume the download"
        raise WsiIdcError(
            f"the download from Kaggle failed ({first_line(error)[:160]}); {advice}, or download "
            f"the archive from {PAGE} and run wsi-idc prepare ARCHIVE.zip"
        ) from None
