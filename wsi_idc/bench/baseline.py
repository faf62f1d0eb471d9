"""Plain script: simple code for maps and training. Benchmarks compare commands with this script.

Pillow opens PNG files, torchvision transforms the images, a DataLoader makes batches, torchcam
computes one CAM at a time, and h5py writes one file per patient. The plain script computes in fp32.
The plain script does not fuse batch norms. Only the workers of the DataLoader prefetch batches.
"""

import sys
from collections.abc import Sequence
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
from wsi_idc.runtime.resources import available_cores, return_freed_memory


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


def worker_options(num_workers: int) -> dict[str, Any]:
    """Return options of a DataLoader that starts its workers in the same way on every Python."""
    if num_workers == 0 or sys.platform != "linux":
        return {"num_workers": num_workers}
    # The default of Python 3.14 imports torch in each new worker, longer than a short round.
    return {"num_workers": num_workers, "multiprocessing_context": "fork"}


def _png_loader(
    classifier: PatchClassifier, files: Sequence[Path], batch_size: int, *, train: bool = False
) -> DataLoader[tuple[Tensor, int]]:
    """Return a DataLoader of PNG files.

    With ``train``, the loader shuffles and augments the patches, and yields only full batches.
    """
    steps: list[Any] = [transforms.ToTensor()]
    if train:
        flips = (transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip())
        steps = [*flips, transforms.ColorJitter(0.1, 0.1, 0.1), *steps]
    if (side := classifier.input_px) is not None:
        # Resize the tensor, not the Pillow image: Pillow rounds resized pixels to 8 bits.
        mode = transforms.InterpolationMode(classifier.interpolation)
        steps.append(transforms.Resize((side, side), mode, antialias=True))
    mean, std = (value.flatten().tolist() for value in (classifier.mean, classifier.std))
    dataset = PngFiles(files, transforms.Compose([*steps, transforms.Normalize(mean, std)]))
    workers = worker_options(available_cores())
    return DataLoader(dataset, batch_size, train, drop_last=train, **workers)


@return_freed_memory()
def baseline_map(
    classifier: PatchClassifier, files: Sequence[Path], *, batch_size: int, out: Path
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Map patients with the plain script; write one file PATIENT.h5 per patient.

    Args:
        classifier: Classifier in eval mode.
        files: Paths PATIENT/CLASS/NAME.png of N patches, grouped by patient.
        batch_size: Batch size of the DataLoader.
        out: Existing folder for the files PATIENT.h5.

    Returns:
        Logits of shape (N, num_classes), and unnormalized Grad-CAMs of shape (N, h, w).
    """
    logits, cams = [], []
    layer = default_cam_layer(classifier.arch, classifier.input_px)
    with GradCAM(classifier.network, target_layer=layer) as extractor:
        for images, _ in _png_loader(classifier, files, batch_size):
            for image in images.to(classifier.mean.device):
                scores = classifier.network(image[None])
                (cam,) = extractor(class_idx=IDC, scores=scores, normalized=False)
                logits.append(scores.detach().cpu())
                cams.append(cam.cpu())
    logit, cam = torch.cat(logits).numpy(), torch.cat(cams).numpy()
    patients = np.array([path.parents[1].name for path in files])
    for patient in np.unique(patients):
        with h5py.File(out / f"{patient}.h5", "w") as file:
            file["logit"] = logit[patients == patient]
            file["cam"] = cam[patients == patient]
    return logit, cam


@return_freed_memory()
def baseline_epoch(classifier: PatchClassifier, files: Sequence[Path], *, batch_size: int) -> int:
    """Train one epoch of full batches with the plain script; return the number of used patches."""
    classifier.train()
    optimizer = torch.optim.AdamW(classifier.parameters())
    loader = _png_loader(classifier, files, batch_size, train=True)
    device, loss_sum = classifier.mean.device, 0.0
    for images, label in loader:
        optimizer.zero_grad()
        logits = classifier.network(images.to(device))
        loss = torch.nn.functional.cross_entropy(logits, label.to(device))
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
    return len(loader) * batch_size
