"""Paths and first checks of checkpoint files; importing this module does not import torch."""

import os
import zipfile
from importlib import resources
from pathlib import Path

from wsi_idc.core.errors import CheckpointError
from wsi_idc.core.files import regular_file

BUNDLED = "bundled"  # name of the bundled checkpoint on the command line
MAX_BYTES = 20 * 10**9  # the largest networks of torchvision have weights of 2.6 GB
# Files of weights in a folder: a repository of the Hugging Face hub, or a run.
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin", "best.pt")
REMEDY = "give a .pt file that wsi-idc train wrote"


def bundled_checkpoint() -> Path:
    """Return the path of the checkpoint that is installed with this package."""
    return Path(os.fspath(resources.files("wsi_idc.models") / "bundled" / "idc.pt"))  # type: ignore[call-overload]


def find_weights(path: Path) -> Path:
    """Return the file of weights in a folder; return ``path`` if it is not a folder.

    The path "bundled" means the bundled checkpoint, unless it exists.

    Raises:
        CheckpointError: The folder has no file of weights.
    """
    if path == Path(BUNDLED) and not path.exists():
        return bundled_checkpoint()
    if not path.is_dir():
        return path
    files = [path / name for name in _IN_FOLDER if (path / name).is_file()]
    if not files:
        raise CheckpointError(f"{path} is a folder without {', '.join(_IN_FOLDER)}; give a file")
    return files[0]


def check_checkpoint_file(path: Path) -> None:
    """Check that a file can be opened and is a ZIP archive, the file format of ``torch.save``.

    Raises:
        CheckpointError: The file is missing, not a regular file, or not a complete ZIP archive.
    """
    try:
        with regular_file(path, MAX_BYTES).open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile
    except (OSError, zipfile.BadZipFile) as error:
        raise unreadable_error(path, error, remedy=REMEDY) from None


def unreadable_error(path: Path, error: Exception, *, remedy: str) -> CheckpointError:
    """Return the error for a file that could not be read; ``remedy`` is advice to the user."""
    match error:
        case FileNotFoundError():
            return CheckpointError(f"{path}: no such file; {remedy}")
        case IsADirectoryError():
            return CheckpointError(f"{path} is a folder; {remedy}")
        case OSError(strerror=str(reason)):
            return CheckpointError(f"{path}: cannot be read ({reason}); {remedy}")
    return CheckpointError(f"{path}: not a readable checkpoint ({type(error).__name__}); {remedy}")
