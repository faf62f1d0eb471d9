"""Plain script: maps and training in simple code, the reference for the commands' results.

Pillow opens PNG files, torchvision transforms the images, a DataLoader makes batches, torchcam
computes one CAM at a time, and h5py writes one file per patient. The plain script computes in fp32.
It does not fuse batch norms, and only the workers of the DataLoader read in advance.
"""

from collections.abc import Sequence
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
from torchcam.methods import GradCAM
from torchvision import transforms

from wsi_idc.core.constants import IDC
from wsi_idc.models.cam_layers import default_cam_layer
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.runtime.resources import return_freed_memory


@dataclass(frozen=True)
class BaselineOutput:
    """Results of the plain script for N patches.

    Attributes:
        logit: Logits of each patch, shape (N, num_classes), float32.
        cam: Grad-CAM of each patch, not normalized, shape (N, h, w), float32.
    """

    logit: NDArray[np.float32]
    cam: NDArray[np.float32]


class PngFiles(Dataset[tuple[Tensor, int]]):
    """Data set of PNG files: pairs of a transformed image and its label.

    Args:
        files: Paths PATIENT/CLASS/NAME.png.
        transform: Function from a Pillow image to a tensor.
    """

    def __init__(self, files: Sequence[Path], transform: Any) -> None:
        self._files, self._transform = files, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        path = self._files[number]
        with Image.open(path) as image:
            return self._transform(image.convert("RGB")), int(path.parent.name)


def make_transform(
    input_px: int | None, mean: Sequence[float], std: Sequence[float], *, augmented: bool = False
) -> Any:
    """Build a torchvision transform: it converts a Pillow image to a normalized tensor.

    Args:
        input_px: Side of the resized image in px; None keeps the size.
        mean: Mean of each color channel, from 0 to 1.
        std: Standard deviation of each color channel, from 0 to 1.
        augmented: Also apply random flips and small random changes of the colors.
    """
    augmentation = [
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.ColorJitter(0.1, 0.1, 0.1),
    ]
    steps: list[Any] = [*(augmentation if augmented else []), transforms.ToTensor()]
    if input_px is not None:
        # Resize the tensor, not the Pillow image: Pillow rounds resized pixels to 8 bits.
        steps.append(transforms.Resize((input_px, input_px), antialias=True))
    return transforms.Compose([*steps, transforms.Normalize(mean, std)])


def _png_files(
    classifier: PatchClassifier, files: Sequence[Path], *, augmented: bool = False
) -> PngFiles:
    mean, std = (value.flatten().tolist() for value in (classifier.mean, classifier.std))
    return PngFiles(files, make_transform(classifier.input_px, mean, std, augmented=augmented))


@return_freed_memory()
def baseline_map(
    classifier: PatchClassifier,
    files: Sequence[Path],
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    out: Path,
) -> BaselineOutput:
    """Map patients with the plain script; write one file PATIENT.h5 per patient.

    Args:
        classifier: Classifier in eval mode, on ``device``.
        files: Paths PATIENT/CLASS/NAME.png, grouped by patient.
        device: Device of the network.
        batch_size: Batch size of the DataLoader.
        num_workers: Worker processes of the DataLoader.
        out: Existing folder for the files PATIENT.h5.
    """
    loader = DataLoader(_png_files(classifier, files), batch_size, num_workers=num_workers)
    logits, cams = [], []
    layer = default_cam_layer(classifier.arch, classifier.input_px)
    with GradCAM(classifier.network, target_layer=layer) as extractor:
        for images, _ in loader:
            for image in images.to(device):
                scores = classifier.network(image[None])
                (cam,) = extractor(class_idx=IDC, scores=scores, normalized=False)
                logits.append(scores.detach().cpu())
                cams.append(cam.cpu())
    output = BaselineOutput(torch.cat(logits).numpy(), torch.cat(cams).numpy())
    patients = np.array([path.parents[1].name for path in files])
    for patient in np.unique(patients):
        with h5py.File(out / f"{patient}.h5", "w") as file:
            file["logit"] = output.logit[patients == patient]
            file["cam"] = output.cam[patients == patient]
    return output


@return_freed_memory()
def baseline_epoch(
    classifier: PatchClassifier,
    files: Sequence[Path],
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int,
) -> int:
    """Train one epoch of full batches with the plain script; return the number of patches."""
    classifier.train()
    optimizer = torch.optim.AdamW(classifier.parameters())
    dataset = _png_files(classifier, files, augmented=True)
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
