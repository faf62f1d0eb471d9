"""Measure whether novelty separates slides of other tissue from unseen patients of a pack.

python benchmarks/novelty.py data/idc.h5 other.svs
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.evaluate import choose_patients
from wsi_idc.inference.predict import RawPrediction
from wsi_idc.inference.predictor import Predictor
from wsi_idc.metrics.classification import auc
from wsi_idc.models.checkpoint import load_checkpoint
from wsi_idc.models.checkpoint_files import bundled_checkpoint
from wsi_idc.runtime.device import DeviceConfig, select_device
from wsi_idc.slides.slide import open_slide
from wsi_idc.slides.tiling import SlideSettings, tile_slide


def novelty_of_pack(
    predictor: Predictor, pack: Pack, device_config: DeviceConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean novelty of each test patient of a pack, and the patient's limit."""
    rows = np.flatnonzero(np.isin(pack.patient_of, choose_patients(predictor, pack, "test")))
    prediction = RawPrediction.concatenate(
        predictor.predict(pack, rows, device_config=device_config)
    )
    return _means(predictor, prediction, pack.patient_of[rows])


def novelty_of_slide(
    predictor: Predictor, path: Path, device_config: DeviceConfig, *, region_cells: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean novelty and the limit of each region of a slide.

    A region has the area of ``region_cells`` x ``region_cells`` patches. The patches overlap by
    four fifths, so that a small slide gives enough patches.
    """
    spec = predictor.checkpoints[0].input
    stride_px = spec.patch_px // 5
    with open_slide(path) as slide:
        settings = SlideSettings(stride_px=stride_px)
        reader = tile_slide(slide, settings, patch_px=spec.patch_px, mpp=spec.mpp).patches
        with predictor.batch_predictor(device_config=device_config, batch_size=64) as predict:
            prediction = RawPrediction.concatenate(predict(reader.batches(64)))
    region = reader.row_col // (region_cells * spec.patch_px // stride_px)
    _, code = np.unique(region, axis=0, return_inverse=True)
    return _means(predictor, prediction, code.ravel(), overlap=(spec.patch_px / stride_px) ** 2)


def _means(
    predictor: Predictor, prediction: RawPrediction, group: NDArray, *, overlap: float = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    novelty = predictor.novelty(prediction.distance)
    if novelty is None:
        raise SystemExit("the checkpoint has no novelty model")
    _, code, counts = np.unique(group, return_inverse=True, return_counts=True)
    # Number of patches that would cover the same area without overlap.
    nums = np.maximum(1, np.round(counts / overlap)).astype(int)
    limits = np.array([predictor.novelty_limit(num) for num in nums.tolist()])
    return np.bincount(code, novelty) / counts, limits


def main() -> None:
    """Print a row per slide: regions, mean novelty, AUROC, fraction of regions with a caution."""
    parser = argparse.ArgumentParser(description="Novelty of other slides.")
    parser.add_argument("data", type=Path, help="pack with test patients of the checkpoint")
    parser.add_argument("slides", type=Path, nargs="+", help="slides of other tissue")
    parser.add_argument("--checkpoint", type=Path, default=bundled_checkpoint())
    parser.add_argument("--region-cells", type=int, default=2, help="side of a region in patches")
    given = parser.parse_args()
    predictor, device_config = Predictor((load_checkpoint(given.checkpoint),)), select_device()
    patients, limits = novelty_of_pack(predictor, Pack(given.data), device_config)
    print("| slide | regions | mean novelty | AUROC | cautions |\n|---|---|---|---|---|")
    print(f"| test patients | {len(patients)} | {_row(patients, limits)}")
    for path in given.slides:
        regions, limits = novelty_of_slide(
            predictor, path, device_config, region_cells=given.region_cells
        )
        is_other = np.repeat([0, 1], [len(patients), len(regions)])
        area = auc(is_other, np.concatenate([patients, regions]))
        print(f"| {path.name} | {len(regions)} | {_row(regions, limits, area)}")


def _row(means: NDArray, limits: NDArray, area: float | None = None) -> str:
    auroc = "" if area is None else f"{area:.3f}"
    return f"{means.mean():.2f} | {auroc} | {(means > limits).mean():.0%} |"


if __name__ == "__main__":
    main()
