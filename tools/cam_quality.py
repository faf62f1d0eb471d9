"""Compare the CAMs of several networks and methods on the same patches.

    python tools/cam_quality.py data/idc.h5 runs/A runs/B --methods gradcam,layercam

The script prints a table in Markdown; docs/metrics.md explains its columns. The patches are those
of the test patients that all runs share.
"""

import argparse
import math
import sys
from pathlib import Path

from wsi_idc.core.errors import WsiIdcError
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.cam_quality import cam_quality
from wsi_idc.inference.predictor import Predictor
from wsi_idc.models.cam import CAM_METHODS, CamSpec
from wsi_idc.models.checkpoint import load_checkpoint
from wsi_idc.runtime.device import select_device


def main() -> None:
    """Print a row for each run and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--methods", default="gradcam", help="Names, separated by commas, or all.")
    parser.add_argument("--patches", type=int, default=200, help="Largest number of each class.")
    options = parser.parse_args()
    methods = CAM_METHODS if options.methods == "all" else options.methods.split(",")
    pack, device_config = Pack(options.pack), select_device()
    predictors = [Predictor((load_checkpoint(run / "best.pt"),)) for run in options.runs]
    shared = set.intersection(*(predictor.patients("test") for predictor in predictors))
    patients = sorted(shared & set(pack.patients))
    sys.stdout.write(
        "| network | method | cells | fall | area | non-IDC | rim | flips |\n"
        "|---|---|---|---:|---:|---:|---:|---:|\n"
    )
    for predictor in predictors:
        (checkpoint,) = predictor.checkpoints
        for method in methods:
            quality = cam_quality(
                *(predictor, pack, patients),
                device_config=device_config,
                cam=CamSpec(method),
                num_patches=options.patches,
            )
            rows, cols = quality.grid
            sys.stdout.write(
                f"| {checkpoint.architecture} at {checkpoint.input.input_px or pack.info.patch_px} "
                f"px | {method} | {rows} x {cols} | {quality.fall:.2f} | {quality.area:.2f} "
                f"| {_text(quality.other_brightness, '.2f')} | {_text(quality.rim_excess, '+.0%')} "
                f"| {_text(quality.flip_stability, '.2f')} |\n"
            )
            sys.stdout.flush()


def _text(value: float, form: str) -> str:
    """Return a value as text; a dash if the CAMs are zero, so that there is no value."""
    return "-" if math.isnan(value) else format(value, form)


if __name__ == "__main__":
    try:
        main()
    except WsiIdcError as error:
        sys.exit(f"Error: {error}")
