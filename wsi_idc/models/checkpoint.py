"""Checkpoint: a file from which a classifier is rebuilt.

The file contains all weights, or, after a linear probe, the head and the source of the encoder.
"""

import errno
import hashlib
import io
import json
import math
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi_idc.core.constants import (
    INTERPOLATIONS,
    NUM_CLASSES,
    POSSIBLE_MPP,
    POSSIBLE_TEMPERATURE,
    ROLES,
)
from wsi_idc.core.errors import CheckpointError
from wsi_idc.core.files import regular_file, starts_with, write_bytes
from wsi_idc.models.architecture import build_empty
from wsi_idc.models.cam_layers import num_channels
from wsi_idc.models.checkpoint_files import (
    MAX_BYTES,
    REMEDY,
    check_checkpoint_file,
    unreadable_error,
)
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.encoder_source import EncoderSource, head_state, load_encoder
from wsi_idc.models.novelty import NoveltyModel
from wsi_idc.models.registry import architecture
from wsi_idc.models.smoothing import NeighborModel, Smoothing, is_probability

FORMAT = "wsi-idc-checkpoint"
# Version 2: a file that contains only the head, which older programs do not read.
SCHEMA_VERSIONS = (1, 2)
_MAX_PATCH_PX = 4096
_MAX_INPUT_PX = 1024
_MAX_SIGMA_CELLS = 100.0
_STARTS = (b"PK", b"\x80")  # first bytes of a zip, and of a pickle by an old version of torch
# Errors of reading a damaged or manipulated file; RuntimeError includes RecursionError.
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)


@dataclass(frozen=True)
class InputSpec:
    """Description of the patches that the network takes.

    Attributes:
        patch_px: Side of a patch in px.
        mpp: Microns per pixel of a patch.
        input_px: Side in px to which patches are resized; None: patches are not resized.
        mean, std: Mean and standard deviation of each channel, to normalize values in 0..1.
        interpolation: Interpolation that resizes patches, "bilinear" or "bicubic". Old checkpoints
            have no value, and their patches are resized by bilinear interpolation.
    """

    patch_px: int
    mpp: float
    input_px: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        has_std = len(self.std) == 3 and all(0 < value < math.inf for value in self.std)
        if len(self.mean) != 3 or not has_std:
            raise ValueError("mean and std need three numbers each; every std must be positive")
        if not all(0 <= value <= 1 for value in self.mean):
            raise ValueError("the mean of a channel is not within 0..1")
        finest, coarsest = POSSIBLE_MPP
        if not 0 < self.patch_px <= _MAX_PATCH_PX or not finest <= self.mpp <= coarsest:
            raise ValueError(f"patches of {self.patch_px} px at {self.mpp:g} um/px are impossible")
        if self.input_px is not None and not 0 < self.input_px <= _MAX_INPUT_PX:
            raise ValueError(f"no network takes images of {self.input_px} px")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"{self.interpolation!r} is no interpolation")


@dataclass(frozen=True)
class Checkpoint:
    """A trained classifier and a record of its training.

    Attributes:
        architecture: Name of the architecture, as in ``models.registry``.
        state: Parameters and buffers of the network.
        input: Description of the patches that the network takes.
        class_names: Names of class 0 and class 1.
        cam_layer: Name of the module whose output is the last feature map. CAMs are computed from
            this feature map. If this map has fewer than 4 x 4 cells, CAMs are computed from an
            earlier feature map.
        temperature: Divisor of the logits before the softmax.
        threshold: A patch is called IDC if its probability of IDC is at least this value.
        split: Role of each patient ("train", "val", "test").
        split_spec: Value of the setting "split", such as "ratio:70/15/15".
        metrics: Metrics on the val patients; empty before calibration.
        provenance: Command, program versions and data of the training.
        config: Settings of the training.
        inherited: Patients on which the initial weights were trained.
        smoothing: Smoothing that was fitted on the val patients; None in older checkpoints.
        neighbors: Neighbor model that was fitted on the val slides that are complete; None if
            too few val slides are complete, and in older checkpoints.
        novelty: Novelty model of the train patches; None in older checkpoints.
        encoder: Source of the weights of all layers except the head, which the file does not
            contain; None if the file contains all weights.
        source: Path of the checkpoint file; None if the checkpoint was not read from a file.
        fingerprint: SHA-256 of the checkpoint file; None if there is no file.
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
    neighbors: NeighborModel | None = None
    novelty: NoveltyModel | None = field(default=None, compare=False)
    encoder: EncoderSource | None = None
    source: Path | None = field(default=None, compare=False)
    fingerprint: str | None = field(default=None, compare=False)

    def build(self) -> PatchClassifier:
        """Build the classifier in eval mode, on the CPU."""
        arch = architecture(self.architecture)
        network = build_empty(arch.build, len(self.class_names), device="cpu")
        load_state(network, self.state)
        spec = self.input
        classifier = PatchClassifier(
            *(arch, network),
            input_px=spec.input_px,
            mean=spec.mean,
            std=spec.std,
            interpolation=spec.interpolation,
            novelty=self.novelty,
        )
        return classifier.eval()

    def patients(self, *roles: str) -> set[str]:
        """Return the patients that have one of ``roles`` in the split.

        For the role "train", the result also contains the patients on which the initial weights
        were trained.
        """
        patients = {patient for patient, role in self.split.items() if role in roles}
        return patients.union(self.inherited) if "train" in roles else patients

    def summary(self) -> dict[str, Any]:
        """Return a description of the checkpoint for a JSON file; the weights are left out."""
        spec = asdict(self.input)
        if self.input.interpolation == InputSpec.interpolation:
            del spec["interpolation"]  # evaluations by older versions stay up to date
        return {
            "architecture": self.architecture,
            "checkpoint": self.source.name if self.source else None,
            "sha256": self.fingerprint,
            "input": spec,
            "cam_layer": self.cam_layer,
            "metrics": dict(self.metrics),
            **({} if self.encoder is None else {"encoder": asdict(self.encoder)}),
        }

    def stored_state(self) -> dict[str, Tensor]:
        """Return the weights that the file contains: all weights, or those of the head."""
        if self.encoder is None:
            return dict(self.state)
        return head_state(architecture(self.architecture), self.state)

    def validate(self) -> None:
        """Check that each attribute has a possible value.

        Raises:
            ValueError: An attribute has a value that no training can produce.
            CheckpointError: The weights do not fit the architecture.
        """
        arch, spec = architecture(self.architecture), self.input
        coldest, warmest = POSSIBLE_TEMPERATURE
        if not (coldest <= self.temperature <= warmest and is_probability(self.threshold)):
            raise ValueError("the temperature or the threshold is out of range")
        if self.smoothing and self.smoothing.sigma_um > _MAX_SIGMA_CELLS * spec.patch_px * spec.mpp:
            raise ValueError(f"a smoothing of {self.smoothing.sigma_um:g} um is too wide")
        patch_um = spec.patch_px * spec.mpp
        if self.neighbors and not math.isclose(self.neighbors.patch_um, patch_um, rel_tol=0.01):
            raise ValueError("the neighbor model is for patches of another size")
        if len(self.class_names) != NUM_CLASSES:
            raise ValueError(f"{len(self.class_names)} classes instead of {NUM_CLASSES}")
        if self.cam_layer != arch.cam_layer:
            raise ValueError(f"cam_layer is {self.cam_layer!r} instead of {arch.cam_layer!r}")
        if unknown := set(self.split.values()).difference(ROLES):
            raise ValueError(f"a patient has the unknown role {unknown.pop()!r}")
        # A map stores these three fields as JSON. JSON has no tensors and no NaN.
        json.dumps([self.metrics, self.provenance, self.config], allow_nan=False)
        for name, value in self.state.items():
            if not is_dense(value):
                raise ValueError(f"{str(name)!r} is not a tensor of plain numbers")
        # Compare only the shapes; no memory is allocated for the network.
        network = build_empty(arch.build, NUM_CLASSES)
        own = network.state_dict()
        if self.encoder is not None:
            own = head_state(arch, own)
        shapes = {name: value.shape for name, value in own.items()}
        if shapes != {name: value.shape for name, value in self.state.items()}:
            raise CheckpointError(
                f"{self.source}: the weights do not fit {self.architecture}; train the model again"
            )
        if not all(torch.isfinite(value).all() for value in self.state.values()):
            raise ValueError("a weight is not a finite number")
        if self.novelty is not None:
            layer = self.novelty.layer
            self.novelty.validate(num_channels(arch, spec.input_px or spec.patch_px, layer))


def _read_input(content: Any) -> InputSpec:
    input_px = content["input_px"]
    input_px = None if input_px is None else int(input_px)
    mean, std = (tuple(map(float, content[name])) for name in ("mean", "std"))
    interpolation = str(content.get("interpolation", "bilinear"))
    sizes = int(content["patch_px"]), float(content["mpp"]), input_px
    return InputSpec(*sizes, mean, std, interpolation)


def _read_smoothing(content: Any) -> Smoothing | None:
    names = ("sigma_um", "temperature", "threshold")
    return None if content is None else Smoothing(*(float(content[name]) for name in names))


def _read_neighbors(content: Any) -> NeighborModel | None:
    if content is None:
        return None
    bias, threshold, patch_um = (float(content[name]) for name in ("bias", "threshold", "patch_um"))
    return NeighborModel(tuple(map(float, content["weights"])), bias, threshold, patch_um)


def _read_novelty(content: Any) -> NoveltyModel | None:
    if content is None:
        return None
    tensors = [content[name] for name in ("mean", "whitening", "quantiles")]
    if not all(map(is_dense, tensors)):
        raise ValueError("the novelty model is not made of plain numbers")
    numbers = [float(content[name]) for name in ("patient_mean", "patient_std")]
    # Such a copy has neither a gradient nor other marks that NumPy does not accept.
    copies = [tensor.detach().resolve_neg() for tensor in tensors]
    return NoveltyModel(str(content["layer"]), *copies, *numbers)


def _read_encoder(content: Any) -> EncoderSource | None:
    if content is None:
        return None
    licence = content["licence"]
    licence = None if licence is None else str(licence)
    return EncoderSource(str(content["weights"]), str(content["sha256"]), licence)


# For each field, the function that converts its stored value.
_STORED: dict[str, Callable[[Any], Any]] = {
    "architecture": str,
    "state": dict,
    "input": _read_input,
    "class_names": lambda content: tuple(map(str, content)),
    "cam_layer": str,
    "temperature": float,
    "threshold": float,
    "split": lambda content: {str(patient): str(role) for patient, role in content.items()},
    "split_spec": str,
    "metrics": dict,
    "provenance": dict,
    "config": dict,
    "inherited": lambda content: tuple(map(str, content)),
    "smoothing": _read_smoothing,
    "neighbors": _read_neighbors,
    "novelty": _read_novelty,
    "encoder": _read_encoder,
}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint file atomically: other processes never see an incomplete file."""
    state = {name: value.detach().cpu() for name, value in checkpoint.stored_state().items()}
    content = asdict(replace(checkpoint, state={})) | {
        "state": state,
        "class_names": list(checkpoint.class_names),
        "inherited": list(checkpoint.inherited),
    }
    del content["source"], content["fingerprint"]
    has_encoder = checkpoint.encoder is None
    if has_encoder:
        del content["encoder"]
    version = SCHEMA_VERSIONS[0 if has_encoder else 1]
    write_state(path, {"format": FORMAT, "schema_version": version, **content})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file, and the weights of its encoder if the file contains only the head.

    Code inside the file is never executed.

    Raises:
        CheckpointError: The file is missing or damaged, or is not a checkpoint of this version; or
            the weights of its encoder are not on this machine.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.encoder is None:
        return checkpoint
    arch = architecture(checkpoint.architecture)
    encoder = load_encoder(arch, checkpoint.encoder, checkpoint=path)
    return replace(checkpoint, state={**encoder, **checkpoint.state})


def read_checkpoint(path: Path) -> Checkpoint:
    """Read only the checkpoint file; its ``state`` is that of ``Checkpoint.stored_state``.

    Raises:
        CheckpointError: The file is missing or damaged, or is not a checkpoint of this version.
    """
    content, fingerprint = read_state(path, kind=FORMAT)
    version = content.get("schema_version")
    if version not in SCHEMA_VERSIONS:
        raise CheckpointError(
            f"{path}: checkpoint version {version}, but this program reads versions "
            f"{' and '.join(map(str, SCHEMA_VERSIONS))}; train the model again"
        )
    # Old files do not have these fields.
    optional = ("smoothing", "neighbors", "novelty", "encoder")
    content = {"inherited": (), **dict.fromkeys(optional), **content}
    try:
        values = {name: read(content[name]) for name, read in _STORED.items()}
        checkpoint = Checkpoint(**values, source=path, fingerprint=fingerprint)
        checkpoint.validate()
    except _DAMAGED as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{path}: damaged checkpoint ({type(error).__name__}: {reason}); train the model again"
        ) from None
    return checkpoint


def load_finished_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint file of a finished training; the errors are those of ``load_checkpoint``.

    Raises:
        CheckpointError: The training is not finished, so the model is not calibrated.
    """
    checkpoint = load_checkpoint(path)
    if not checkpoint.metrics:
        raise CheckpointError(
            f"{path}: the training is not finished, so the model is not calibrated; run the same "
            "wsi-idc train again"
        )
    return checkpoint


def write_state(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values to a file, atomically."""
    # torch.save writes into memory, because its error for a full disk is not an OSError.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def read_state(path: Path, *, kind: str) -> tuple[dict[str, Any], str]:
    """Read a file of ``write_state`` in the format ``kind``; return its content and its SHA-256."""
    check_checkpoint_file(path)
    content, data = load_tensors(path, remedy=REMEDY)
    if not isinstance(content, dict) or content.get("format") != kind:
        raise CheckpointError(f"{path}: not a {kind} file; {REMEDY}")
    return content, hashlib.sha256(data).hexdigest()


def load_tensors(path: Path, *, remedy: str) -> tuple[Any, bytes]:
    """Read a file of ``torch.save``, or a .safetensors file; return its content and its bytes.

    The content may only have tensors and plain values. Code inside the file is never executed.

    Args:
        path: File to read.
        remedy: Advice to the user, added at the end of an error message.

    Raises:
        CheckpointError: The file is missing or cannot be read.
        MemoryError: The memory is too small for the file.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            data = regular_file(path, MAX_BYTES).read_bytes()
            return load(data), data
        if not starts_with(regular_file(path, MAX_BYTES), *_STARTS):
            raise zipfile.BadZipFile
        data = path.read_bytes()  # read once, because a training may replace the file
        if data.startswith(_STARTS[0]):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                # torch.save does not compress, so larger members are a decompression bomb.
                if sum(member.file_size for member in archive.infolist()) > len(data):
                    raise OSError(errno.EINVAL, "its members claim more bytes than the file has")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), data
    # If torch.save did not write the file, torch.load can raise many kinds of errors.
    except Exception as error:  # noqa: BLE001
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise MemoryError from None
        raise unreadable_error(path, error, remedy=remedy) from None


def is_dense(value: Any) -> bool:
    """Return whether ``value`` is a plain tensor on the CPU: dense, real and not quantized."""
    if not isinstance(value, Tensor) or value.is_quantized or value.is_complex():
        return False
    return value.layout == torch.strided and value.device.type == "cpu"


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set all parameters and buffers of ``network`` to the values in ``state``."""
    ordered = OrderedDict(state)
    # _metadata contains the version of each module. MNASNet does not accept a state without it.
    ordered._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(ordered)
