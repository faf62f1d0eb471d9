"""Inputs of a benchmark: a pack, PNG files of its patches, and a checkpoint."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import update_bn

from wsi_idc.core.constants import PATCH_PX
from wsi_idc.core.errors import CheckpointError, DataError
from wsi_idc.core.text import count
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


@dataclass(frozen=True)
class BenchmarkData:
    """Input of a benchmark.

    Attributes:
        pack: Pack with the patches that the benchmark processes.
        about: Text that describes the data in the result of the benchmark.
        folder: Existing folder for the files of the benchmark.
    """

    pack: Pack
    about: str
    folder: Path


def open_benchmark_data(data: Path | None, *, synthetic: int, folder: Path) -> BenchmarkData:
    """Open the data or draw synthetic patches.

    Args:
        data: Path from ``--data``; None means the default data.
        synthetic: Number of patches to draw; 0 means to open the data. If there are no default
            data, 4000 patches are drawn.
        folder: Existing folder for the files of the benchmark.

    Raises:
        DataError: The data cannot be read.
    """
    if not synthetic:
        try:
            pack = open_data(data)
            return BenchmarkData(pack, f"{len(pack):,} patches of {pack.path}", folder)
        except DataError as error:
            if data is not None or not str(error).startswith("no data"):
                raise
        logger.warning("found no data; measuring with %d synthetic patches", _DEFAULT_PATCHES)
    num_patches = synthetic or _DEFAULT_PATCHES
    # Draw at least 10 patients if possible: a split needs several patients.
    per_patient = min(_PATCHES_PER_PATIENT, max(1, num_patches // _MIN_PATIENTS))
    pack = drawn_pack(folder / "synthetic.h5", num_patches, a_patient=per_patient)
    about = f"{len(pack):,} synthetic patches of {count(len(pack.patients), 'patient')}"
    return BenchmarkData(pack, about, folder)


def drawn_pack(
    path: Path, num_patches: int, *, a_patient: int = _PATCHES_PER_PATIENT, patch_px: int = PATCH_PX
) -> Pack:
    """Write and open a pack of synthetic patches.

    The patches are cut from one synthetic slide and shuffled. If the slide has fewer than
    ``num_patches`` patches, patches are repeated.

    Args:
        path: Pack file to write.
        num_patches: Number of patches in the pack.
        a_patient: Number of patches per patient; the last patient may have fewer patches.
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
    blocks = (pool[part % len(pool)] for part in np.split(number, number[_BLOCK::_BLOCK]))
    write_pack(path, table, blocks, info=info, provenance=json.dumps({"drawn": num_patches}))
    return Pack(path)


def choose_patients(pack: Pack, num_patches: int) -> list[str]:
    """Choose patients at random; together they have about ``num_patches`` patches."""
    sizes = np.bincount(pack.index["patient"], minlength=len(pack.patients))
    order = np.random.default_rng(_SEED).permutation(len(sizes))
    candidates = order[sizes[order] <= 2 * num_patches].tolist() or [int(sizes.argmin())]
    chosen = candidates[:1]
    for number in candidates[1:]:
        if sizes[[*chosen, number]].sum() <= 1.1 * num_patches:
            chosen.append(number)
    return [pack.patients[number] for number in sorted(chosen)]


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
    """Return the checkpoint that a benchmark uses, and a text that describes this checkpoint.

    Every network except the bundled model has random weights. The statistics of its batch norms are
    computed from patches of the pack, so that its logits are about as large as after a training.

    Args:
        model: Name of an architecture, or "bundled" for the bundled model.
        input_size: Side of the network's input in px; 0 means the default of the model.
        pack: Pack with the patches that the benchmark processes.

    Raises:
        CheckpointError: There is no such model, or the model does not take this input size.
    """
    if model == BUNDLED:
        bundled = load_checkpoint(bundled_checkpoint())
        size = bundled.input.input_px or bundled.input.patch_px
        if input_size not in (0, size):
            raise CheckpointError(
                f"the bundled model needs an input of {size} px, not {input_size}; leave "
                f"out --input-size, or give --model {bundled.architecture}"
            )
        return bundled, f"the bundled {bundled.architecture} at {size} px"
    arch, info = architecture(model), pack.info
    input_px = input_size or arch.input_px
    check_input_px(arch, input_px or info.patch_px)
    torch.manual_seed(_SEED)
    sizes = info.patch_px, info.mpp, input_px
    spec = InputSpec(*sizes, info.mean, info.std, arch.interpolation)
    network = arch.build(2)
    classifier = PatchClassifier(
        *(arch, network),
        input_px=input_px,
        mean=spec.mean,
        std=spec.std,
        interpolation=spec.interpolation,
    )
    update_bn([torch.from_numpy(np.array(pack.patches[:_SETTLING_PATCHES]))], classifier)
    checkpoint = Checkpoint(
        architecture=arch.name,
        state=network.state_dict(),
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
