"""Files that ``torch.save`` writes: tensors and plain values by name, read without running code."""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from wsi_idc.core.errors import CheckpointError
from wsi_idc.core.files import write_bytes

_REMEDY = "give a .pt file that wsi-idc train wrote"


def write_state(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values in one atomic step."""
    # In memory first: torch answers a full disk with an error of its own kind.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def read_state(path: Path, *, kind: str) -> dict[str, Any]:
    """Read a dictionary that ``torch.save`` wrote and whose "format" is ``kind``.

    Raises:
        CheckpointError: It is missing, cannot be read or is something else.
    """
    return _of_kind(load_weights_only(path, remedy=_REMEDY), path, kind=kind)


def load_with_fingerprint(path: Path, *, kind: str) -> tuple[dict[str, Any], str]:
    """Read as ``read_state``, and return also the SHA-256 of the very bytes that were read."""
    # Once: a training may put another one there at any time.
    with _readable(path, remedy=_REMEDY):
        data = path.read_bytes()
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return _of_kind(content, path, kind=kind), hashlib.sha256(data).hexdigest()


def _of_kind(content: Any, path: Path, *, kind: str) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != kind:
        raise CheckpointError(f"{path}: not a {kind} file; give a .pt that wsi-idc train wrote")
    return content


def load_weights_only(path: Path, *, remedy: str) -> Any:
    """Read what ``torch.save`` wrote, if it is tensors and plain values; no code in it is run.

    Raises:
        CheckpointError: It is missing or cannot be read; ``remedy`` ends the message.
    """
    with _readable(path, remedy=remedy):
        return torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _readable(path: Path, *, remedy: str) -> Iterator[None]:
    """Turn what reading a file raises into one line."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; {remedy}") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder; {remedy}") from None
    # torch.load answers a file of another kind with whatever its parsers raise.
    except Exception as error:  # noqa: BLE001
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); {remedy}"
        ) from None
