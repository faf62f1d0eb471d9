"""Predict the patches of a slide with TIAToolbox; `benchmarks/tiatoolbox_predictor.py` runs this.

The interpreter has TIAToolbox, and finds the package wsi_idc through PYTHONPATH. The script writes
the corners and the probabilities of the patches, and the versions of the packages.
"""

import argparse
from pathlib import Path

import numpy as np
import tiatoolbox
import torch
import zarr
from numpy.typing import NDArray
from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig
from tiatoolbox.models.engine.patch_predictor import PatchPredictor
from tiatoolbox.models.models_abc import ModelABC

from wsi_idc.models.checkpoint import load_checkpoint
from wsi_idc.models.classifier import PatchClassifier


class ToolboxModel(ModelABC):
    """A classifier as a model of TIAToolbox; a batch is normalized and resized in one call."""

    def __init__(self, classifier: PatchClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Compute probabilities (N, num_classes) of patches (N, H, W, 3), uint8."""
        return torch.softmax(self.classifier(patches), dim=-1)

    @staticmethod
    def infer_batch(
        model: torch.nn.Module, batch_data: torch.Tensor, *, device: str
    ) -> NDArray[np.float32]:
        """Compute the probabilities of a batch."""
        model.eval()
        with torch.inference_mode():
            return model(batch_data.to(device)).cpu().numpy()

    @staticmethod
    def postproc(image: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the class with the largest probability."""
        return np.argmax(image, axis=-1)


def main() -> None:
    """Predict the patches that a mask selects."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("slide", "mask", "checkpoint", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    spec = checkpoint.input
    resolution = [{"units": "mpp", "resolution": spec.mpp}]
    predictor = PatchPredictor(
        ToolboxModel(checkpoint.build()),
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
    )
    output = predictor.run(
        [arguments.slide],
        masks=[arguments.mask],
        patch_mode=False,
        ioconfig=IOPatchPredictorConfig(
            input_resolutions=resolution,
            output_resolutions=resolution,
            patch_input_shape=(spec.patch_px, spec.patch_px),
            stride_shape=(spec.patch_px, spec.patch_px),
        ),
        save_dir=arguments.out,
        output_type="zarr",
        return_probabilities=True,
    )
    group = zarr.open_group(output[arguments.slide], mode="r")
    np.savez(
        arguments.out / "patches.npz",
        corners_px=group["coordinates"][:, :2],
        probability=group["probabilities"][:, 1],
        versions=[tiatoolbox.__version__, torch.__version__],
    )


if __name__ == "__main__":
    main()
