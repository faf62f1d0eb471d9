"""A checkpoint as a model folder of WSInfer, which QuPath's WSInfer extension reads as well.

Both cut patches of ``patch_size_pixels`` times ``spacing_um_px`` um from a slide, transform them as
``config.json`` says and take the softmax of what ``torchscript_model.pt`` gives. The rules:
https://github.com/SBU-BMI/wsinfer-zoo/blob/main/wsinfer_zoo/schemas/model-config.schema.json
"""

import io
import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi_idc.core.errors import CheckpointError
from wsi_idc.core.files import ensure_writable, write_bytes, write_json, write_text
from wsi_idc.models.checkpoint import Checkpoint

SPEC_VERSION = "1.0"
_TRACED_BATCH = 2
_CHECKED_BATCHES = (1, 7)
_TOLERANCE = 1e-4

_THRESHOLDS = {"f1": " for the largest F1", "youden": " for the largest Youden index"}
_CARD = """\
# {architecture}: {classes}

Made by `wsi-idc export --format wsinfer` from a checkpoint (SHA-256 `{sha256}`).

**Research use only. No output of this model is a diagnosis.**

- **Input**: patches of {patch_px} x {patch_px} px at {mpp:g} um/px, {patch_um:g} um a side, of
  H&E-stained breast tissue. This is the resolution that the training data state or, as for the
  Kaggle set, are assumed to have. `config.json` says how patches are resized and normalised.
- **Output**: two logits, of {classes}, already divided by the temperature ({temperature:.4g}, set
  on val patients): their softmax is the calibrated probability.
- **Threshold**: {threshold:.4g} is the probability of {idc} from which a patch is called so, set on
  val patients{threshold_how}. WSInfer has none, and QuPath names a tile by the larger probability,
  as a threshold of 0.5 would: go by the probabilities.
- **Training**: split {split_spec} with {num_train} patients in train, {num_val} in val and
  {num_test} in test. Metrics: {metrics}.

    wsinfer run --config config.json --model-path torchscript_model.pt \\
        --wsi-dir SLIDES --results-dir OUT

In QuPath, put this folder into the WSInfer extension's directory of local models.
"""


class _Calibrated(nn.Module):
    """A network whose logits are divided by the temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 2) of normalised images (N, 3, H, W)."""
        return self.network(x) / self.temperature


def write_wsinfer(checkpoint: Checkpoint, out: Path) -> list[Path]:
    """Write the model folder ``out`` and return its files.

    Raises:
        CheckpointError: Its classes have one name, or the network does not survive TorchScript.
        WsiIdcError: ``out`` cannot be written to, or holds other files of these names.
    """
    if len(set(checkpoint.class_names)) < len(checkpoint.class_names):
        raise CheckpointError(
            f"{checkpoint.source}: both classes have the same name; train it anew"
        )
    names = ("torchscript_model.pt", "config.json", "README.md")
    ensure_writable(out, writes=names, marks=names[:1])
    files = [out / name for name in names]
    write_bytes(files[0], torchscript(checkpoint))
    write_json(files[1], wsinfer_config(checkpoint))
    write_text(files[2], _card(checkpoint))
    return files


def wsinfer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what ``config.json`` says.

    ``Resize`` is there for models that take patches as they are too: QuPath and WSInfer round
    the side of a patch on the slide, and the patch read may be off by a px.
    """
    spec = checkpoint.input
    return {
        "spec_version": SPEC_VERSION,
        "architecture": checkpoint.architecture,
        "num_classes": len(checkpoint.class_names),
        "class_names": list(checkpoint.class_names),
        "patch_size_pixels": spec.patch_px,
        "spacing_um_px": spec.mpp,
        "transform": [
            {"name": "Resize", "arguments": {"size": _input_px(checkpoint)}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": list(spec.mean), "std": list(spec.std)}},
        ],
    }


def torchscript(checkpoint: Checkpoint) -> bytes:
    """Return the network with its temperature as TorchScript, for batches of any size.

    It is not frozen: freezing makes constants of the weights, which ``module.to("cuda")`` leaves
    behind, and that is how WSInfer moves a model to a GPU.

    Raises:
        CheckpointError: What comes back from TorchScript gives other logits.
    """
    model = _Calibrated(checkpoint.build().network, checkpoint.temperature).eval()
    side = _input_px(checkpoint)
    generator = torch.Generator().manual_seed(0)
    # Optimising what is run three times takes longer than running it.
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
                    f"{checkpoint.source}: as TorchScript, {checkpoint.architecture} gives other "
                    f"logits for {size} patches; export a model of another architecture"
                )
    return data


def _input_px(checkpoint: Checkpoint) -> int:
    return checkpoint.input.input_px or checkpoint.input.patch_px


class _quiet(warnings.catch_warnings):  # noqa: N801
    """Silence what torch says of TorchScript being old; the readers of the file know no other."""

    def __enter__(self) -> None:
        super().__enter__()
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message=r"`?torch\.jit", category=category)
        # Of a size that the trace took for a constant; the logits are checked.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)


def _without_paths(data: bytes) -> bytes:
    """Drop the records that say where on this machine each operation was written.

    They serve error messages alone, and readers do without them.
    """
    kept = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(kept, "w") as new:
        for info in old.infolist():
            if not info.filename.endswith(".debug_pkl"):
                new.writestr(info, old.read(info))
    return kept.getvalue()


def _card(checkpoint: Checkpoint) -> str:
    spec = checkpoint.input
    quoted = [_code(name) for name in checkpoint.class_names]
    return _CARD.format(
        architecture=_code(checkpoint.architecture),
        classes=f"{quoted[0]} and {quoted[1]}",
        idc=quoted[1],
        sha256=checkpoint.fingerprint,
        patch_px=spec.patch_px,
        mpp=spec.mpp,
        patch_um=spec.patch_px * spec.mpp,
        temperature=checkpoint.temperature,
        threshold=checkpoint.threshold,
        threshold_how=_how(checkpoint.config),
        split_spec=_code(checkpoint.split_spec),
        num_train=len(checkpoint.patients("train")),
        num_val=len(checkpoint.patients("val")),
        num_test=len(checkpoint.patients("test")),
        metrics=_code(json.dumps(dict(checkpoint.metrics))),
    )


def _how(config: Mapping[str, Any]) -> str:
    """Return what the threshold was set for, nothing where a checkpoint does not say."""
    if target := config.get("target_sensitivity"):
        return f" for a sensitivity of {target:g}" if isinstance(target, float) else ""
    return _THRESHOLDS.get(str(config.get("threshold_by")), "")


def _code(text: str) -> str:
    """Return text from a checkpoint as Markdown code, in which nothing of it is a command."""
    plain = "".join(char if char.isprintable() and char != "`" else "?" for char in text)
    return f"`{plain}`"
