"""The checkpoint: one file that rebuilds a classifier with nothing from memory."""

import io
import json
import math
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi_idc.errors import CheckpointError
from wsi_idc.files import sha256, write_bytes
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.registry import architecture
from wsi_idc.models.trace import skeleton

FORMAT = "wsi-idc-checkpoint"
SCHEMA_VERSION = 1
NUM_CLASSES = 2
# Training ends within 0.05 and 20; far beyond, a division is no number any more.
TEMPERATURES = (1e-3, 1e3)
_MAX_MPP = 100.0
_MAX_PATCH_PX = 4096
_MAX_INPUT_PX = 1024
_MAX_SIGMA_CELLS = 100.0
BUNDLED = "bundled"


@dataclass(frozen=True)
class InputSpec:
    """What patches the network takes.

    Attributes:
        patch_px: Side of a patch in px.
        mpp: Microns per pixel of a patch.
        input_px: Side that patches are resized to; None leaves them.
        mean, std: Of each channel, 0..1.
    """

    patch_px: int
    mpp: float
    input_px: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Smoothing:
    """How a patient's probabilities are smoothed by their neighbours on the grid.

    Attributes:
        sigma_um: Standard deviation of the Gaussian that weighs the neighbours.
        temperature: Divides the smoothed log odds.
        threshold: Smoothed probability of IDC from which a patch is called IDC.
    """

    sigma_um: float
    temperature: float
    threshold: float

    def __post_init__(self) -> None:
        coldest, warmest = TEMPERATURES
        if not (
            0 <= self.sigma_um < math.inf
            and coldest <= self.temperature <= warmest
            and 0 <= self.threshold <= 1
        ):
            raise ValueError(f"{self} is out of range")


@dataclass(frozen=True)
class Checkpoint:
    """A trained classifier and how it came about.

    Attributes:
        architecture: Name in the registry.
        state: Parameters and buffers of the network.
        input: What patches it takes.
        class_names: Of class 0 and 1.
        cam_layer: Name of the module that CAMs are taken from.
        temperature: Divides the logits before the softmax.
        threshold: Probability of IDC from which a patch is called IDC.
        split: Role of each patient ("train", "val", "test").
        split_spec: How the split was asked for.
        metrics: On the val patients.
        provenance: Command, versions, data.
        config: The training configuration.
        inherited: Patients that the weights it began with were trained on.
        smoothing: Set on the val patients; None in checkpoints that know none.
        source: Where it was read from, None for a fresh one.
        fingerprint: SHA-256 of the file it was read from.
    """

    architecture: str
    state: Mapping[str, Tensor]
    input: InputSpec
    class_names: tuple[str, ...]
    cam_layer: str
    temperature: float
    threshold: float
    split: Mapping[str, str]
    split_spec: str
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]
    config: Mapping[str, Any]
    inherited: tuple[str, ...] = ()
    smoothing: Smoothing | None = None
    source: Path | None = field(default=None, compare=False)
    fingerprint: str | None = field(default=None, compare=False)

    def build(self) -> PatchClassifier:
        """Return the classifier in eval mode, on the CPU."""
        arch = architecture(self.architecture)
        network = skeleton(arch.build, len(self.class_names)).to_empty(device="cpu")
        try:
            load_state(network, self.state)
        except RuntimeError:
            raise _misfit(self) from None
        spec = self.input
        classifier = PatchClassifier(
            arch, network, input_px=spec.input_px, mean=spec.mean, std=spec.std
        )
        return classifier.eval()

    def patients(self, *roles: str) -> set[str]:
        """Return the patients that had one of these roles.

        Those that the weights it began with were trained on count as train patients too, whatever
        its own split says of them.
        """
        own = {patient for patient, role in self.split.items() if role in roles}
        return own.union(self.inherited) if "train" in roles else own

    def summary(self) -> dict[str, Any]:
        """Return what identifies it, JSON-ready, without weights and split."""
        return {
            "architecture": self.architecture,
            "checkpoint": self.source.name if self.source else None,
            "sha256": self.fingerprint,
            "input": asdict(self.input),
            "cam_layer": self.cam_layer,
            "metrics": dict(self.metrics),
        }


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in one atomic step."""
    content = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "architecture": checkpoint.architecture,
        "state": {name: value.detach().cpu() for name, value in checkpoint.state.items()},
        "input": asdict(checkpoint.input),
        "class_names": list(checkpoint.class_names),
        "cam_layer": checkpoint.cam_layer,
        "temperature": checkpoint.temperature,
        "threshold": checkpoint.threshold,
        "split": dict(checkpoint.split),
        "split_spec": checkpoint.split_spec,
        "metrics": dict(checkpoint.metrics),
        "provenance": dict(checkpoint.provenance),
        "config": dict(checkpoint.config),
        "inherited": list(checkpoint.inherited),
        "smoothing": None if checkpoint.smoothing is None else asdict(checkpoint.smoothing),
    }
    save_dict(path, content)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in the file is run.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind or another version.
    """
    content = load_dict(path, kind=FORMAT)
    if content.get("schema_version") != SCHEMA_VERSION:
        found = content.get("schema_version")
        raise CheckpointError(
            f"{path}: checkpoint version {found}, this program reads {SCHEMA_VERSION}; train anew"
        )
    try:
        checkpoint = Checkpoint(
            architecture=str(content["architecture"]),
            state=dict(content["state"]),
            input=_input_spec(content["input"]),
            class_names=tuple(str(name) for name in content["class_names"]),
            cam_layer=str(content["cam_layer"]),
            temperature=float(content["temperature"]),
            threshold=float(content["threshold"]),
            split={str(k): str(v) for k, v in content["split"].items()},
            split_spec=str(content["split_spec"]),
            metrics=dict(content["metrics"]),
            provenance=dict(content["provenance"]),
            config=dict(content["config"]),
            inherited=tuple(str(patient) for patient in content.get("inherited", ())),
            smoothing=_smoothing(content.get("smoothing")),
            source=path,
            fingerprint=sha256(path),
        )
        _check_numbers(checkpoint)
        _check_weights(checkpoint)
    except _DAMAGED as error:
        raise CheckpointError(
            f"{path}: damaged checkpoint ({type(error).__name__}: {_first_line(error)}); train it "
            "anew"
        ) from None
    checkpoint.build()  # raises where weights and architecture do not fit
    return checkpoint


_DAMAGED = (
    *(KeyError, TypeError, ValueError, AttributeError, RuntimeError),
    *(OverflowError, RecursionError),
)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _smoothing(content: Any) -> Smoothing | None:
    if content is None:
        return None
    names = ("sigma_um", "temperature", "threshold")
    return Smoothing(**{name: float(content[name]) for name in names})


def _input_spec(content: Any) -> InputSpec:
    """Return the input specification that a checkpoint states; ValueError where it is none."""
    input_px = content["input_px"]
    spec = InputSpec(
        patch_px=int(content["patch_px"]),
        mpp=float(content["mpp"]),
        input_px=None if input_px is None else int(input_px),
        mean=tuple(float(value) for value in content["mean"]),
        std=tuple(float(value) for value in content["std"]),
    )
    sizes = (spec.patch_px, spec.mpp, 1 if spec.input_px is None else spec.input_px, *spec.std)
    if not all(0 < size < math.inf for size in sizes) or not len(spec.mean) == len(spec.std) == 3:
        raise ValueError("the input is not stated in positive numbers of three channels")
    if not all(0 <= value <= 1 for value in spec.mean):
        raise ValueError("the input's mean is not within 0..1")
    if spec.patch_px > _MAX_PATCH_PX or spec.mpp > _MAX_MPP or (input_px or 0) > _MAX_INPUT_PX:
        raise ValueError(f"no model takes patches of {spec.patch_px} px of {spec.mpp:g} um")
    return spec


def _check_numbers(checkpoint: Checkpoint) -> None:
    """Raise ValueError where a field cannot be what training wrote."""
    coldest, warmest = TEMPERATURES
    if not (coldest <= checkpoint.temperature <= warmest and 0 <= checkpoint.threshold <= 1):
        raise ValueError("temperature or threshold out of range")
    smoothing, spec = checkpoint.smoothing, checkpoint.input
    if smoothing and smoothing.sigma_um > _MAX_SIGMA_CELLS * spec.patch_px * spec.mpp:
        raise ValueError(f"no smoothing reaches {smoothing.sigma_um:g} um")
    if len(checkpoint.class_names) != NUM_CLASSES:
        raise ValueError(f"{len(checkpoint.class_names)} classes, not {NUM_CLASSES}")
    if checkpoint.cam_layer != architecture(checkpoint.architecture).cam_layer:
        raise ValueError(f"no CAM is taken from the layer {checkpoint.cam_layer!r}")
    # Plain values only: all but the weights is written into maps as JSON, which knows no NaN.
    plain = [checkpoint.metrics, checkpoint.provenance, checkpoint.config]
    json.dumps(plain, allow_nan=False)


def _check_weights(checkpoint: Checkpoint) -> None:
    """Raise where the state is not plain numbers, before any memory is taken for it.

    Raises:
        CheckpointError: It is that of another network.
        ValueError: A weight is no finite number, or nothing that has a value.
    """
    build = architecture(checkpoint.architecture).build
    wanted = skeleton(build, len(checkpoint.class_names)).state_dict()
    state = checkpoint.state
    for name, value in state.items():
        if not _is_plain(value):
            raise ValueError(f"{str(name)!r} is not a tensor of plain numbers")
    misfits = wanted.keys() ^ state.keys()
    if misfits or any(state[name].shape != value.shape for name, value in wanted.items()):
        raise _misfit(checkpoint)
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise ValueError("a weight is not a finite number")


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _misfit(checkpoint: Checkpoint) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.source}: the weights do not fit {checkpoint.architecture}; train it anew"
    )


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill all of ``network`` with the values of such a network.

    Raises:
        RuntimeError: A name is missing or unknown, or a shape differs.
    """
    ordered = OrderedDict(state)
    # The versions of its modules, without which MNASNet takes no state.
    ordered._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(ordered)


def save_dict(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values in one atomic step."""
    # In memory first: torch answers a full disk with an error of its own kind.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_dict(path: Path, *, kind: str) -> dict[str, Any]:
    """Read a dictionary that ``torch.save`` wrote and whose "format" is ``kind``.

    Raises:
        CheckpointError: It is missing, cannot be read or is something else.
    """
    content = load_plain(path, remedy="give a .pt file that wsi-idc train wrote")
    if not isinstance(content, dict) or content.get("format") != kind:
        raise CheckpointError(f"{path}: not a {kind} file; give a .pt that wsi-idc train wrote")
    return content


def load_plain(path: Path, *, remedy: str) -> Any:
    """Read what ``torch.save`` wrote, if it is tensors and plain values; no code in it is run.

    Raises:
        CheckpointError: It is missing or cannot be read; ``remedy`` ends the message.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; {remedy}") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder; {remedy}") from None
    # torch.load answers a file of another kind with whatever its parsers raise.
    except Exception as error:  # noqa: BLE001
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); {remedy}"
        ) from None


def bundled_checkpoint() -> Path:
    """Return the checkpoint that comes with the package."""
    return Path(os.fspath(resources.files("wsi_idc.models") / "bundled" / "cnn-bn.pt"))  # type: ignore[call-overload]
