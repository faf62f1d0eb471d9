"""Inputs of a benchmark: a pack, PNG files of its patches, a checkpoint."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from wsi_idc.core.constants import PATCH_PX
from wsi_idc.core.errors import CheckpointError, DataError
from wsi_idc.data.open_data import open_data
from wsi_idc.data.pack import Pack, PackInfo, write_pack
from wsi_idc.models.cam_layers import check_input_px
from wsi_idc.models.checkpoint import Checkpoint, InputSpec, load_checkpoint
from wsi_idc.models.checkpoint_files import BUNDLED, bundled_checkpoint
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.registry import IMAGENET_MEAN, IMAGENET_STD, architecture
from wsi_idc.synthetic.tissue import draw_slide

logger = logging.getLogger(__name__)

_PATCHES_PER_PATIENT = 994  # mean of the Kaggle data set: 277,524 patches / 279 patients
_MIN_PATIENTS = 10
_DEFAULT_PATCHES = 4_000
_DRAWN_CELLS = 32
_BLOCK = 1_000
_SEED = 0
_MPP = 4.0
_SETTLING_PATCHES = 64


def open_benchmark_data(data: Path | None, *, synthetic: int, folder: Path) -> tuple[Pack, str]:
    """Open the data or draw synthetic patches; return the pack and a text that describes it.

    Args:
        data: Path from ``--data``; None for the default data.
        synthetic: Number of patches to draw; 0 reads the data, and draws if there are no data.
        folder: Folder for the pack of drawn patches.

    Raises:
        DataError: The data cannot be read.
    """
    if not synthetic:
        try:
            pack = open_data(data)
            return pack, f"{len(pack):,} patches of {pack.path}"
        except DataError as error:
            if data is not None or not str(error).startswith("no data"):
                raise
        logger.warning("no data here: measuring on %d synthetic patches", _DEFAULT_PATCHES)
    num_patches = synthetic or _DEFAULT_PATCHES
    # Draw at least 10 patients if possible: a split needs several.
    per_patient = min(_PATCHES_PER_PATIENT, max(1, num_patches // _MIN_PATIENTS))
    pack = drawn_pack(folder / "synthetic.h5", num_patches, a_patient=per_patient)
    return pack, f"{len(pack):,} synthetic patches of {len(pack.patients)} patients"


def drawn_pack(
    path: Path, num_patches: int, *, a_patient: int = _PATCHES_PER_PATIENT, patch_px: int = PATCH_PX
) -> Pack:
    """Write and open a pack of synthetic patches.

    The patches are cut from one drawn slide, put in random order, and repeated as needed.

    Args:
        path: Pack file to write.
        num_patches: Number of patches in the pack.
        a_patient: Number of patches of each patient except the last.
        patch_px: Side of a patch in px.
    """
    rng = np.random.default_rng(_SEED)
    side = _DRAWN_CELLS * patch_px
    slide = draw_slide("R", seed=_SEED, height_px=side, width_px=side).rgb
    cut = slide.reshape(_DRAWN_CELLS, patch_px, _DRAWN_CELLS, patch_px, 3).swapaxes(1, 2)
    pool = rng.permutation(cut.reshape(-1, patch_px, patch_px, 3))
    number = np.arange(num_patches)
    patient, place = np.divmod(number, a_patient)
    cols = int(np.ceil(np.sqrt(a_patient)))
    table = pd.DataFrame(
        {
            "patient": [f"R{index:05d}" for index in patient],
            "x": place % cols * patch_px,
            "y": place // cols * patch_px,
            "label": rng.integers(0, 2, num_patches),
            "height": patch_px,
            "width": patch_px,
            "path": [f"{index}.png" for index in number],
        }
    )
    info = PackInfo(IMAGENET_MEAN, IMAGENET_STD, patch_px, _MPP, "assumed", "0" * 64)
    starts = range(0, num_patches, _BLOCK)
    blocks = (pool[number[start : start + _BLOCK] % len(pool)] for start in starts)
    write_pack(path, table, blocks, info=info, provenance=json.dumps({"drawn": num_patches}))
    return Pack(path)


def choose_patients(pack: Pack, num_patches: int) -> list[str]:
    """Choose patients at random; together they have about ``num_patches`` patches."""
    sizes = np.bincount(pack.index["patient"], minlength=len(pack.patients))
    order = np.random.default_rng(_SEED).permutation(len(sizes))
    candidates = [number for number in order if sizes[number] <= 2 * num_patches]
    chosen = [int(candidates[0] if candidates else sizes.argmin())]
    total = int(sizes[chosen[0]])
    for number in candidates[1:]:
        if total + sizes[number] <= 1.1 * num_patches:
            chosen.append(int(number))
            total += int(sizes[number])
    return [pack.patients[number] for number in sorted(chosen)]


def rows_of(pack: Pack, patients: Sequence[str]) -> NDArray[np.int64]:
    """Return the rows in the pack of all patches of ``patients``."""
    return np.concatenate([pack.rows_of(patient) for patient in patients])


def write_pngs(pack: Pack, rows: NDArray[np.int64], folder: Path) -> list[Path]:
    """Write patches of a pack as PNG files; return their paths in the order of ``rows``."""
    columns = pack.index.iloc[rows][["x", "y", "label"]].to_numpy()
    files = []
    for row, patient, (x, y, label) in zip(rows, pack.patient_of[rows], columns, strict=True):
        known_label = max(int(label), 0)
        name = f"{patient}_idx5_x{x + 1}_y{y + 1}_class{known_label}.png"
        path = folder / patient / str(known_label) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pack.patches[row][:, :, ::-1])
        files.append(path)
    return files


def make_checkpoint(model: str, *, input_size: int, pack: Pack) -> tuple[Checkpoint, str]:
    """Make the checkpoint of a benchmark; return the checkpoint and a text that describes it.

    The network of an architecture has random weights. The statistics of its batch norms are
    computed on patches of the pack, so that its outputs are as large as after a training.

    Args:
        model: Name of an architecture, or "bundled" for the bundled model.
        input_size: Side of the network's input in px; 0 takes the default of the model.
        pack: Pack of the patches to measure on.

    Raises:
        CheckpointError: There is no such model, or the model does not take this input size.
    """
    if model == BUNDLED:
        bundled = load_checkpoint(bundled_checkpoint())
        size = bundled.input.input_px or bundled.input.patch_px
        if input_size not in (0, size):
            raise CheckpointError(
                f"the bundled model takes patches at {size} px, not {input_size}; leave "
                f"--input-size out, or give --model {bundled.architecture}"
            )
        return bundled, f"the bundled {bundled.architecture} at {size} px"
    arch, info = architecture(model), pack.info
    input_px = input_size or arch.input_px
    check_input_px(arch, input_px or info.patch_px)
    torch.manual_seed(_SEED)
    spec = InputSpec(info.patch_px, info.mpp, input_px, info.mean, info.std)
    network = arch.build(2)
    classifier = PatchClassifier(arch, network, input_px=input_px, mean=spec.mean, std=spec.std)
    first = pack.patches[np.arange(min(len(pack), _SETTLING_PATCHES))]
    _settle_batch_norms(classifier, torch.from_numpy(first))
    checkpoint = Checkpoint(
        architecture=arch.name,
        state=classifier.network.state_dict(),
        input=spec,
        class_names=info.class_names,
        cam_layer=arch.cam_layer,
        temperature=1.0,
        threshold=0.5,
        split={},
        split_spec="none",
        metrics={},
        provenance={},
        config={},
    )
    return checkpoint, f"{arch.name} at {input_px or info.patch_px} px"


@torch.no_grad()
def _settle_batch_norms(classifier: PatchClassifier, patches: torch.Tensor) -> None:
    """Set the statistics of all batch norms to those of ``patches``."""
    norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # None: the statistics are the mean over all patches
    if norms:
        classifier.train()(patches)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    classifier.eval()
