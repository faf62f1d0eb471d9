"""The checkpoint: one file that rebuilds a classifier with nothing from memory."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wsi_idc.core.constants import POSSIBLE_MPP, POSSIBLE_TEMPERATURE, ROLES
from wsi_idc.models.registry import Architecture

if TYPE_CHECKING:
    pass
import os
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path

from torch import nn

from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.registry import architecture
from wsi_idc.models.serialization import load_with_fingerprint, write_state
from wsi_idc.models.tracing import build_on_meta

NUM_CLASSES = 2
_MAX_PATCH_PX = 4096
_MAX_INPUT_PX = 1024
_MAX_SIGMA_CELLS = 100.0


def is_temperature(value: float) -> bool:
    """Return whether logits can be divided by it and stay numbers."""
    coldest, warmest = POSSIBLE_TEMPERATURE
    return coldest <= value <= warmest


def check_input(spec: "InputSpec") -> None:
    """Raise ValueError where no network takes such patches."""
    sizes = (spec.patch_px, spec.mpp, 1 if spec.input_px is None else spec.input_px, *spec.std)
    if not all(0 < size < math.inf for size in sizes) or not len(spec.mean) == len(spec.std) == 3:
        raise ValueError("the input is not stated in positive numbers of three channels")
    if not all(0 <= value <= 1 for value in spec.mean):
        raise ValueError("the input's mean is not within 0..1")
    finest, coarsest = POSSIBLE_MPP
    if spec.patch_px > _MAX_PATCH_PX or not finest <= spec.mpp <= coarsest:
        raise ValueError(f"no slide has patches of {spec.patch_px} px of {spec.mpp:g} um")
    if spec.input_px is not None and spec.input_px > _MAX_INPUT_PX:
        raise ValueError(f"no network takes {spec.input_px} px")


def check_numbers(checkpoint: "Checkpoint", arch: Architecture) -> None:
    """Raise ValueError where a field cannot be what training wrote."""
    if not is_temperature(checkpoint.temperature) or not 0 <= checkpoint.threshold <= 1:
        raise ValueError("temperature or threshold out of range")
    smoothing, spec = checkpoint.smoothing, checkpoint.input
    if smoothing and smoothing.sigma_um > _MAX_SIGMA_CELLS * spec.patch_px * spec.mpp:
        raise ValueError(f"no smoothing reaches {smoothing.sigma_um:g} um")
    if len(checkpoint.class_names) != NUM_CLASSES:
        raise ValueError(f"{len(checkpoint.class_names)} classes, not {NUM_CLASSES}")
    if checkpoint.cam_layer != arch.cam_layer:
        raise ValueError(f"no CAM is taken from the layer {checkpoint.cam_layer!r}")
    if unknown := set(checkpoint.split.values()).difference(ROLES):
        raise ValueError(f"no patient has the role {unknown.pop()!r}")
    # Plain values only: all but the weights is written into maps as JSON, which knows no NaN.
    plain = [checkpoint.metrics, checkpoint.provenance, checkpoint.config]
    json.dumps(plain, allow_nan=False)


def check_weights(state: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> bool:
    """Return whether a state has the names and shapes that are wanted; no memory is taken for it.

    Raises:
        ValueError: A weight is no finite number, or nothing that has a value.
    """
    for name, value in state.items():
        if not is_dense_tensor(value):
            raise ValueError(f"{str(name)!r} is not a tensor of plain numbers")
    if wanted.keys() != state.keys():
        return False
    if any(state[name].shape != value.shape for name, value in wanted.items()):
        return False
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise ValueError("a weight is not a finite number")
    return True


def is_dense_tensor(value: Any) -> bool:
    """Return whether it is a tensor of real numbers that are there."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


FORMAT = "wsi-idc-checkpoint"
SCHEMA_VERSION = 1
BUNDLED = "bundled"
# What reading the fields of a file made to deceive can raise.
_DAMAGED = (
    *(KeyError, TypeError, ValueError, AttributeError, RuntimeError),
    *(OverflowError, RecursionError),
)


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
        if not (
            0 <= self.sigma_um < math.inf
            and is_temperature(self.temperature)
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
        cam_layer: Name of the network's last feature map: CAMs are taken there, or at an earlier
            one where it has fewer than 4 x 4 cells.
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
        network = build_on_meta(arch.build, len(self.class_names)).to_empty(device="cpu")
        try:
            load_state(network, self.state)
        except RuntimeError:
            raise self.mismatch_error() from None
        spec = self.input
        classifier = PatchClassifier(
            arch, network, input_px=spec.input_px, mean=spec.mean, std=spec.std
        )
        return classifier.eval()

    def mismatch_error(self) -> CheckpointError:
        """Return the error of weights that are another network's."""
        return CheckpointError(
            f"{self.source}: the weights do not fit {self.architecture}; train it anew"
        )

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
    write_state(path, content)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in the file is run.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind or another version.
    """
    content, fingerprint = load_with_fingerprint(path, kind=FORMAT)
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
            fingerprint=fingerprint,
        )
        arch = architecture(checkpoint.architecture)
        check_numbers(checkpoint, arch)
        wanted = build_on_meta(arch.build, len(checkpoint.class_names)).state_dict()
        is_fitting = check_weights(checkpoint.state, wanted)
    except _DAMAGED as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{path}: damaged checkpoint ({type(error).__name__}: {reason}); train it anew"
        ) from None
    if not is_fitting:
        raise checkpoint.mismatch_error()
    return checkpoint


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
    check_input(spec)
    return spec


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill all of ``network`` with the values of such a network.

    Raises:
        RuntimeError: A name is missing or unknown, or a shape differs.
    """
    ordered = OrderedDict(state)
    # The versions of its modules, without which MNASNet takes no state.
    ordered._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(ordered)


def bundled_checkpoint() -> Path:
    """Return the checkpoint that comes with the package."""
    return Path(os.fspath(resources.files("wsi_idc.models") / "bundled" / "idc.pt"))  # type: ignore[call-overload]
