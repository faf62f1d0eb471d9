"""What bf16 changes: probabilities, AUC and CAMs of unseen patches, against fp32.

    python tools/precision.py data/idc.h5 [--patches 2000] [--model cnn-bn]

prints the rows of the table in docs/performance.md. A CPU without bf16 of its own computes the
same numbers, slowly.
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
from wsi_idc.models.checkpoint import load_checkpoint
from wsi_idc.models.checkpoint_files import bundled_checkpoint
from wsi_idc.runtime.device import select_device


def main() -> None:
    """Compare both precisions on test patients of the bundled model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--patches", type=int, default=2000)
    parser.add_argument("--model", default="cnn-bn")
    parser.add_argument("--input-size", type=int, default=0)
    given = parser.parse_args()
    pack = Pack(given.pack)
    test = list(load_checkpoint(bundled_checkpoint()).patients("test"))
    rows = np.flatnonzero(np.isin(pack.patient_of, test) & (pack.index["label"] >= 0))
    rows = np.sort(np.random.default_rng(0).permutation(rows)[: given.patches])
    checkpoint, name = make_checkpoint(given.model, input_size=given.input_size, pack=pack)
    method, found = Predictor((checkpoint,)), {}
    for precision in ("fp32", "bf16"):
        compute = select_device("cpu", precision)
        parts = method.predict(pack, rows, device_config=compute, cam=CamSpec())
        found[precision] = RawPrediction.concatenate(list(parts))
    said = {key: method.aggregate(one.logit).probability for key, one in found.items()}
    off = np.abs(said["bf16"] - said["fp32"])
    label = pack.index["label"].to_numpy()[rows]
    auc = {key: roc_auc_score(label, one) for key, one in said.items()}
    flipped = np.mean(
        (said["bf16"] >= checkpoint.threshold) != (said["fp32"] >= checkpoint.threshold)
    )
    cams = {key: one.cam for key, one in found.items() if one.cam is not None}
    cam_off = np.abs(cams["bf16"] - cams["fp32"])
    sys.stdout.write(
        f"| {name} | {len(rows):,} | {np.median(off):.1e} | {off.max():.1e} | "
        f"{auc['fp32']:.4f} | {auc['bf16']:.4f} | {flipped:.2%} | "
        f"{cam_off.mean() / cams['fp32'].mean():.1e} | {cam_off.max() / cams['fp32'].max():.1e} |\n"
    )


if __name__ == "__main__":
    main()
