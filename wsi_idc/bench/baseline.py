"""The plain way, as a script would have it, and so the oracle of what the commands say.

Files opened by Pillow, torchvision's transforms, a DataLoader, torchcam image by image, one HDF5
write a patient; fp32, nothing folded, nothing ahead but the DataLoader's workers.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from wsi_idc.core.constants import IDC
from wsi_idc.models.cam_layers import default_cam_layer
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.runtime.resources import return_freed_memory

_WHITE = 255


@dataclass(frozen=True)
class BaselineOutput:
    """What the plain way says of patches.

    Attributes:
        logit: Shape (N, num_classes), float32.
        cam: Raw Grad-CAM, shape (N, h, w), float32; None where there is no torchcam.
    """

    logit: NDArray[np.float32]
    cam: NDArray[np.float32] | None


class PngFiles(Dataset[tuple[Tensor, int]]):
    """Images of PNG files, as a network takes them, and their labels.

    Args:
        files: PATIENT/CLASS/NAME.png.
        transform: From a picture of Pillow's to a tensor.
    """

    def __init__(self, files: Sequence[Path], transform: Any) -> None:
        self._files, self._transform = files, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        path = self._files[number]
        with Image.open(path) as image:
            return self._transform(image.convert("RGB")), int(path.parent.name)


def has_torchcam() -> bool:
    """Return whether torchcam can be imported."""
    try:
        import torchcam  # noqa: F401
    except ImportError:
        return False
    return True


def transform_of(classifier: PatchClassifier, *, augmented: bool = False) -> Any:
    """Return torchvision's transforms that make of a picture what the network takes."""
    mean, std = (value.flatten().tolist() for value in (classifier.mean, classifier.std))
    return plain_transform(classifier.input_px, mean, std, augmented=augmented)


def plain_transform(
    input_px: int | None, mean: Sequence[float], std: Sequence[float], *, augmented: bool = False
) -> Any:
    """Return torchvision's transforms from a picture of Pillow's to a normalised tensor.

    Args:
        input_px: Side to resize to; None resizes nothing.
        mean: Of each channel, 0..1.
        std: Of each channel, 0..1.
        augmented: Flip it, and change its light a little, by chance.
    """
    by_chance = [
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.ColorJitter(0.1, 0.1, 0.1),
    ]
    steps: list[Any] = [*(by_chance if augmented else []), transforms.ToTensor()]
    if input_px is not None:
        # After ToTensor: Pillow's own resize rounds to 8 bits.
        steps.append(transforms.Resize((input_px, input_px), antialias=True))
    return transforms.Compose([*steps, transforms.Normalize(mean, std)])


@return_freed_memory()
def plain_map(
    classifier: PatchClassifier,
    files: Sequence[Path],
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    out: Path,
) -> BaselineOutput:
    """Map patients the plain way, a file PATIENT.h5 each in ``out``.

    Args:
        classifier: In eval mode, on the device.
        files: PATIENT/CLASS/NAME.png, those of a patient together.
        device: Where the network is.
        batch_size: Of the DataLoader.
        num_workers: Of the DataLoader.
        out: Folder, there already.
    """
    dataset = PngFiles(files, transform_of(classifier))
    loader = DataLoader(dataset, batch_size, num_workers=num_workers)
    logits, cams = [], []
    with ExitStack() as stack:
        extractor = None
        if has_torchcam():
            from torchcam.methods import GradCAM

            network = classifier.network
            layer = default_cam_layer(classifier.arch, classifier.input_px)
            extractor = stack.enter_context(GradCAM(network, target_layer=layer))
        for images, _ in loader:
            for image in images.to(device):
                if extractor is None:
                    with torch.no_grad():
                        logits.append(classifier.network(image[None]).cpu())
                    continue
                scores = classifier.network(image[None])
                (cam,) = extractor(class_idx=IDC, scores=scores, normalized=False)
                logits.append(scores.detach().cpu())
                cams.append(cam.cpu())
    said = BaselineOutput(torch.cat(logits).numpy(), torch.cat(cams).numpy() if cams else None)
    _write(said, [path.parents[1].name for path in files], out)
    return said


def _write(said: BaselineOutput, patients: Sequence[str], out: Path) -> None:
    names = np.array(patients)
    for patient in dict.fromkeys(patients):
        rows = names == patient
        with h5py.File(out / f"{patient}.h5", "w") as file:
            file["logit"] = said.logit[rows]
            if said.cam is not None:
                file["cam"] = said.cam[rows]


def plain_prepare(files: Sequence[Path], *, patch_px: int, out: Path) -> int:
    """Pack files the plain way, a patient at a time; return their number."""
    by_patient: dict[str, list[Path]] = {}
    for path in files:
        by_patient.setdefault(path.parents[1].name, []).append(path)
    with h5py.File(out, "w") as file:
        for patient, members in by_patient.items():
            pixels = np.full((len(members), patch_px, patch_px, 3), _WHITE, np.uint8)
            for place, path in zip(pixels, members, strict=True):
                with Image.open(path) as image:
                    picture = np.asarray(image.convert("RGB"))
                place[: len(picture), : picture.shape[1]] = picture
            file[f"{patient}/patches"] = pixels
            file[f"{patient}/label"] = [int(path.parent.name) for path in members]
    return len(files)


@return_freed_memory()
def plain_epoch(
    classifier: PatchClassifier,
    files: Sequence[Path],
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int,
) -> int:
    """Train over all files once, in whole batches, the plain way; return how many patches."""
    classifier.train()
    optimizer = torch.optim.AdamW(classifier.parameters())
    dataset = PngFiles(files, transform_of(classifier, augmented=True))
    loader = DataLoader(dataset, batch_size, shuffle=True, drop_last=True, num_workers=num_workers)
    loss_sum, num_patches = 0.0, 0
    for images, label in loader:
        optimizer.zero_grad()
        logits = classifier.network(images.to(device))
        loss = torch.nn.functional.cross_entropy(logits, label.to(device))
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
        num_patches += len(images)
    return num_patches
