"""What a bench works on: patches of a pack, PNG files of them, a network."""

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
from wsi_idc.data.pack import Pack, PackInfo
from wsi_idc.data.pack_writer import write_pack
from wsi_idc.models.cam_layers import check_input_px
from wsi_idc.models.checkpoint import Checkpoint, InputSpec, load_checkpoint
from wsi_idc.models.checkpoint_files import BUNDLED, bundled_checkpoint
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.registry import IMAGENET_MEAN, IMAGENET_STD, architecture
from wsi_idc.synthetic.tissue import draw_slide

logger = logging.getLogger(__name__)

# Of the real set: 277,524 patches of 279 patients.
_PATCHES_A_PATIENT = 994
_LEAST_PATIENTS = 10
_DEFAULT_PATCHES = 4_000
_DRAWN_CELLS = 32
_SPLIT = 1_000
_SEED = 0
_MPP = 4.0
_SETTLING_PATCHES = 64


def open_material(data: Path | None, *, synthetic: int, folder: Path) -> tuple[Pack, str]:
    """Return patches and where they come from.

    Args:
        data: As ``open_data`` takes it.
        synthetic: Draw so many patches instead; 0: only where there are no data.
        folder: Where to.

    Raises:
        DataError: ``data`` cannot be used.
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
    # Enough patients for a split.
    a_patient = min(_PATCHES_A_PATIENT, max(1, num_patches // _LEAST_PATIENTS))
    pack = drawn_pack(folder / "synthetic.h5", num_patches, a_patient=a_patient)
    return pack, f"{len(pack):,} synthetic patches of {len(pack.patients)} patients"


def drawn_pack(
    path: Path, num_patches: int, *, a_patient: int = _PATCHES_A_PATIENT, patch_px: int = PATCH_PX
) -> Pack:
    """Write a pack of drawn tissue and open it.

    One slide is drawn and cut, and its patches are repeated in an order of chance.

    Args:
        path: Where to.
        num_patches: In it.
        a_patient: Patches of each patient but the last; as the real set has.
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
            "patient": [f"R{one:05d}" for one in patient],
            "x": place % cols * patch_px,
            "y": place // cols * patch_px,
            "label": rng.integers(0, 2, num_patches),
            "height": patch_px,
            "width": patch_px,
            "path": [f"{one}.png" for one in number],
        }
    )
    info = PackInfo(IMAGENET_MEAN, IMAGENET_STD, patch_px, _MPP, "assumed", "0" * 64)
    blocks = (pool[number[at : at + _SPLIT] % len(pool)] for at in range(0, num_patches, _SPLIT))
    write_pack(path, table, blocks, info=info, provenance=json.dumps({"drawn": num_patches}))
    return Pack(path)


def some_patients(pack: Pack, num_patches: int) -> list[str]:
    """Return patients, from all over the pack, that have about so many patches together."""
    sizes = np.bincount(pack.index["patient"], minlength=len(pack.patients))
    order = np.random.default_rng(_SEED).permutation(len(sizes))
    fitting = [number for number in order if sizes[number] <= 2 * num_patches]
    chosen = [int(fitting[0] if fitting else sizes.argmin())]
    have = int(sizes[chosen[0]])
    for number in fitting[1:]:
        if have + sizes[number] <= 1.1 * num_patches:
            chosen.append(int(number))
            have += int(sizes[number])
    return [pack.patients[number] for number in sorted(chosen)]


def rows_of(pack: Pack, patients: Sequence[str]) -> NDArray[np.int64]:
    """Return the positions of all patches of these patients."""
    return np.concatenate([pack.rows_of(patient) for patient in patients])


def write_pngs(pack: Pack, rows: NDArray[np.int64], folder: Path) -> list[Path]:
    """Write patches as a patch tree of PNG files and return these, in the order of ``rows``."""
    columns = pack.index.iloc[rows][["x", "y", "label"]].to_numpy()
    files = []
    for row, patient, (x, y, label) in zip(rows, pack.patient_of[rows], columns, strict=True):
        known = max(int(label), 0)
        name = f"{patient}_idx5_x{x + 1}_y{y + 1}_class{known}.png"
        path = folder / patient / str(known) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pack.patches[row][:, :, ::-1])
        files.append(path)
    return files


def make_checkpoint(model: str, *, input_size: int, pack: Pack) -> tuple[Checkpoint, str]:
    """Return a network to measure, and what it is.

    An architecture has random weights, whose batch norms have seen patches of the pack, so that its
    numbers are as large as a trained one's.

    Args:
        model: Name of the architecture; "bundled" is the bundled model as it is.
        input_size: Side to resize patches to; 0: the model's own.
        pack: The data.

    Raises:
        CheckpointError: There is no such model, or it takes no images of this size.
    """
    if model == BUNDLED:
        bundled = load_checkpoint(bundled_checkpoint())
        size = bundled.input.input_px or bundled.input.patch_px
        if input_size not in (0, size):
            raise CheckpointError(
                f"the bundled model sees patches at {size} px, not {input_size}; leave "
                f"--input-size out, or give --model {bundled.architecture}"
            )
        return bundled, f"the bundled {bundled.architecture} at {size} px"
    arch, info = architecture(model), pack.info
    input_px = input_size or arch.input_px
    check_input_px(arch, input_px or info.patch_px)
    torch.manual_seed(_SEED)
    spec = InputSpec(info.patch_px, info.mpp, input_px, info.mean, info.std)
    classifier = PatchClassifier(
        arch, arch.build(2), input_px=input_px, mean=spec.mean, std=spec.std
    )
    _settle(
        classifier, torch.from_numpy(pack.patches[np.arange(min(len(pack), _SETTLING_PATCHES))])
    )
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
def _settle(classifier: PatchClassifier, patches: torch.Tensor) -> None:
    """Let batch norms see patches, as if the network had been trained."""
    norms = [one for one in classifier.modules() if isinstance(one, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all that is seen
    if norms:
        classifier.train()(patches)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    classifier.eval()
