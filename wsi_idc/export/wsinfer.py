"""Write a checkpoint as a model folder of WSInfer.

WSInfer and the WSInfer extension of QuPath read this folder. Both programs cut patches from a slide
and transform the patches as in ``config.json``. The side of a patch is ``patch_size_pixels`` times
``spacing_um_px`` um. The probabilities are the softmax of the outputs of ``torchscript_model.pt``.
Format:
https://github.com/SBU-BMI/wsinfer-zoo/blob/main/wsinfer_zoo/schemas/model-config.schema.json
"""

import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi_idc.core.errors import CheckpointError
from wsi_idc.core.files import ensure_writable, write_bytes, write_json, write_text
from wsi_idc.models.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

SPEC_VERSION = "1.0"
_FILES = ("torchscript_model.pt", "config.json", "README.md")
_BOX = 4  # number of Pillow's box filter: it computes the mean, as OpenCV's INTER_AREA does
_BICUBIC = 3  # number of Pillow's filter; without a number, Resize is bilinear
_TRACED_BATCH = 2
_CHECKED_BATCHES = (1, 7)
_TOLERANCE = 1e-4
_THRESHOLDS = {"f1": " for the largest F1", "youden": " for the largest Youden index"}


class _Calibrated(nn.Module):
    """A network whose logits are divided by the temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (N, 2), for normalized images, shape (N, 3, H, W)."""
        return self.network(x) / self.temperature


def write_wsinfer(checkpoint: Checkpoint, out: Path) -> list[Path]:
    """Write the model folder ``out``, and return the paths of the written files.

    An old ``config.json`` is removed first, and the new file is written last. Therefore the folder
    never has a new network with old settings, even if the export is killed.

    Raises:
        CheckpointError: Both classes have the same name, or TorchScript changes the logits.
        WsiIdcError: ``out`` is not writable, or another program wrote files of these names.
    """
    if len(set(checkpoint.class_names)) < len(checkpoint.class_names):
        raise CheckpointError(
            f"{checkpoint.source}: both classes have the same name; train the model again"
        )
    ensure_writable(out, writes=_FILES, marks=_FILES[:1])
    files = [out / name for name in _FILES]
    data = torchscript(checkpoint)
    if checkpoint.encoder is not None:
        logger.warning(
            "%s contains the weights of %s: read their licence before you share it",
            files[0],
            checkpoint.architecture,
        )
    files[1].unlink(missing_ok=True)
    write_bytes(files[0], data)
    write_text(files[2], _card(checkpoint))
    write_json(files[1], wsinfer_config(checkpoint))
    return files


def wsinfer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the contents of ``config.json``.

    WSInfer reads a patch from level 0 and applies every transform in order. The first ``Resize``
    reduces the patch to ``patch_size_pixels`` by averaging px, as in ``wsi-idc map``.
    QuPath reads a patch at ``spacing_um_px``. QuPath resizes each patch only once, to the size of
    the last ``Resize``.
    """
    spec = checkpoint.input
    resizes: list[dict[str, int]] = [{"size": spec.patch_px, "interpolation": _BOX}]
    if spec.input_px not in (None, spec.patch_px):
        bicubic = {"interpolation": _BICUBIC} if spec.interpolation == "bicubic" else {}
        resizes.append({"size": spec.input_px, **bicubic})
    return {
        "spec_version": SPEC_VERSION,
        "architecture": checkpoint.architecture,
        "num_classes": len(checkpoint.class_names),
        "class_names": list(checkpoint.class_names),
        "patch_size_pixels": spec.patch_px,
        "spacing_um_px": spec.mpp,
        "transform": [
            *({"name": "Resize", "arguments": resize} for resize in resizes),
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": list(spec.mean), "std": list(spec.std)}},
        ],
    }


def torchscript(checkpoint: Checkpoint) -> bytes:
    """Return the network and its temperature as TorchScript, for batches of any size.

    The module is not frozen, because freezing turns weights into constants. WSInfer calls
    ``module.to("cuda")``, and this call does not move constants.
    """
    model = _Calibrated(checkpoint.build().network, checkpoint.temperature).eval()
    side = _input_px(checkpoint)
    generator = torch.Generator().manual_seed(0)
    # Do not optimize TorchScript here: this takes longer than the forward passes below.
    with _quiet(), torch.no_grad(), torch.jit.optimized_execution(False):
        example = torch.randn(_TRACED_BATCH, 3, side, side, generator=generator)
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), buffer)
        data = _without_paths(buffer.getvalue())
        read = torch.jit.load(io.BytesIO(data), map_location="cpu")
        for size in _CHECKED_BATCHES:
            images = torch.randn(size, 3, side, side, generator=generator)
            if not torch.allclose(read(images), model(images), atol=_TOLERANCE, rtol=_TOLERANCE):
                raise CheckpointError(
                    f"{checkpoint.source}: TorchScript changes the logits of "
                    f"{checkpoint.architecture} for a batch of {size}; export another architecture"
                )
    return data


def _input_px(checkpoint: Checkpoint) -> int:
    return checkpoint.input.input_px or checkpoint.input.patch_px


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager: hide warnings that TorchScript is deprecated. WSInfer needs TorchScript."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message=r"`?torch\.jit", category=category)
        # A TracerWarning reports a size that becomes a constant. The logits are checked later.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


def _without_paths(data: bytes) -> bytes:
    """Remove the paths of source files, because these paths differ between machines.

    TorchScript uses the paths only in error messages.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            if not info.filename.endswith(".debug_pkl"):
                new.writestr(info, old.read(info))
    return buffer.getvalue()


def _card(checkpoint: Checkpoint) -> str:
    spec = checkpoint.input
    other, idc = (_as_code(name) for name in checkpoint.class_names)
    card = resources.files("wsi_idc.export") / "templates" / "wsinfer_card.md"
    return card.read_text(encoding="utf-8").format(
        architecture=_as_code(checkpoint.architecture),
        classes=f"{other} and {idc}",
        idc=idc,
        sha256=checkpoint.fingerprint,
        patch_px=spec.patch_px,
        mpp=spec.mpp,
        patch_um=spec.patch_px * spec.mpp,
        temperature=checkpoint.temperature,
        threshold=checkpoint.threshold,
        threshold_rule=_threshold_rule(checkpoint.config),
        split_spec=_as_code(checkpoint.split_spec),
        **{f"num_{role}": len(checkpoint.patients(role)) for role in ("train", "val", "test")},
        metrics=_as_code(json.dumps(dict(checkpoint.metrics))),
        encoder=_encoder_item(checkpoint),
    )


def _encoder_item(checkpoint: Checkpoint) -> str:
    """Return the list item of a frozen encoder, or "" if all weights were trained."""
    if (encoder := checkpoint.encoder) is None:
        return ""
    return (
        f"- **Encoder**: only the last layer was trained. All other weights are those of "
        f"{_as_code(checkpoint.architecture)} (SHA-256 {_as_code(encoder.sha256)}, licence "
        f"{_as_code(encoder.licence or 'not known')}). Read their licence before you share this "
        "folder.\n"
    )


def _threshold_rule(config: Mapping[str, Any]) -> str:
    """Return the rule for choosing the threshold, or "" if the checkpoint has no rule."""
    if target := config.get("target_sensitivity"):
        return f" for a sensitivity of {target:g}" if isinstance(target, float) else ""
    return _THRESHOLDS.get(str(config.get("threshold_by")), "")


def _as_code(text: str) -> str:
    """Return text of a checkpoint as a Markdown code span, which shows the text literally."""
    plain = "".join(char if char.isprintable() and char != "`" else "?" for char in text)
    return f"`{plain}`"
