"""Compare bf16 with fp32: probabilities, AUC and CAMs of random patches.

    python tools/precision.py data/idc.h5 [--patches 2000] [--model cnn-bn]

The script prints a row of the table in docs/performance.md. On a CPU without bf16, the script
computes the same numbers, but needs more time.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from wsi_idc.bench.fixtures import make_checkpoint
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predict import RawPrediction
from wsi_idc.inference.predictor import Predictor
from wsi_idc.models.cam import CamSpec
from wsi_idc.runtime.device import select_device


def main() -> None:
    """Compare both precisions on labelled patches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--patches", type=int, default=2000)
    parser.add_argument("--model", default="cnn-bn")
    parser.add_argument("--input-size", type=int, default=0)
    options = parser.parse_args()
    pack = Pack(options.pack)
    rows = np.flatnonzero(pack.index["label"] >= 0)
    rows = np.sort(np.random.default_rng(0).permutation(rows)[: options.patches])
    checkpoint, name = make_checkpoint(options.model, input_size=options.input_size, pack=pack)
    predictor, raw = Predictor((checkpoint,)), {}
    for precision in ("fp32", "bf16"):
        device_config = select_device("cpu", precision)
        parts = predictor.predict(pack, rows, device_config=device_config, cam=CamSpec())
        raw[precision] = RawPrediction.concatenate(parts)
    fp32, bf16 = (predictor.aggregate(raw[key].logit).probability for key in ("fp32", "bf16"))
    difference = np.abs(bf16 - fp32)
    label = pack.index["label"].to_numpy()[rows]
    changed_calls = np.mean((bf16 >= checkpoint.threshold) != (fp32 >= checkpoint.threshold))
    cam, bf16_cam = raw["fp32"].cam, raw["bf16"].cam
    assert cam is not None and bf16_cam is not None
    cam_difference = np.abs(bf16_cam - cam)
    sys.stdout.write(
        f"| {name} | {len(rows):,} | {np.median(difference):.1e} | {difference.max():.1e} | "
        f"{roc_auc_score(label, fp32):.4f} | {roc_auc_score(label, bf16):.4f} | "
        f"{changed_calls:.2%} | {cam_difference.mean() / cam.mean():.1e} | "
        f"{cam_difference.max() / cam.max():.1e} |\n"
    )


if __name__ == "__main__":
    main()
