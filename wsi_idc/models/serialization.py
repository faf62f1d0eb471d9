"""Files that ``torch.save`` writes: tensors and plain values by name, read without running code."""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from wsi_idc.core.errors import CheckpointError
from wsi_idc.core.files import write_bytes
from wsi_idc.models.checkpoint_files import (
    CHECKPOINT_REMEDY,
    check_checkpoint_file,
    unreadable_error,
)


def write_state(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values in one atomic step."""
    # In memory first: torch reports a full disk with an error of its own kind.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def read_state(path: Path, *, kind: str) -> dict[str, Any]:
    """Read a dictionary that ``write_state`` wrote and whose "format" is ``kind``.

    Raises:
        CheckpointError: The file is missing, cannot be read or has another format.
    """
    return read_with_fingerprint(path, kind=kind)[0]


def read_with_fingerprint(path: Path, *, kind: str) -> tuple[dict[str, Any], str]:
    """Read as ``read_state`` does; return the content and the SHA-256 of the bytes read."""
    check_checkpoint_file(path)
    try:
        data = path.read_bytes()  # once: a training may replace the file at any time
    except OSError as error:
        raise unreadable_error(path, error, remedy=CHECKPOINT_REMEDY) from None
    content = load_weights_only(path, io.BytesIO(data), remedy=CHECKPOINT_REMEDY)
    if not isinstance(content, dict) or content.get("format") != kind:
        raise CheckpointError(f"{path}: not a {kind} file; {CHECKPOINT_REMEDY}")
    return content, hashlib.sha256(data).hexdigest()


def load_weights_only(path: Path, file: BinaryIO | None = None, *, remedy: str) -> Any:
    """Read tensors and plain values that ``torch.save`` wrote; no code in the file is run.

    ``file`` is the content of ``path`` if it is already in memory.

    Raises:
        CheckpointError: The file is missing or cannot be read; ``remedy`` ends the message.
    """
    try:
        return torch.load(path if file is None else file, map_location="cpu", weights_only=True)
    # The parsers within torch.load raise errors of many kinds for a file of another kind.
    except Exception as error:  # noqa: BLE001
        raise unreadable_error(path, error, remedy=remedy) from None


def is_dense_tensor(value: Any) -> bool:
    """Return whether ``value`` is a tensor of real numbers that are in memory."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set all parameters and buffers of ``network`` to the values in ``state``.

    Raises:
        RuntimeError: A name is missing or unknown, or a shape differs.
    """
    ordered = OrderedDict(state)
    # Versions of the modules, without which MNASNet refuses a state.
    ordered._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(ordered)
