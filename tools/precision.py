"""Compare bf16 with fp32: probabilities, AUC and CAMs of random patches.

    python tools/precision.py data/idc.h5 [--patches 2000] [--model cnn-bn]

The script prints a row of the table in docs/performance.md. The last layer of a network with random
weights is fitted to 1,000 other patches. On a CPU without bf16, the script computes the same
numbers, but needs more time.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from wsi_idc.bench.fixtures import make_checkpoint
from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.data.pack import Pack
from wsi_idc.inference.features import feature_extractor
from wsi_idc.inference.predict import RawPrediction
from wsi_idc.inference.predictor import Predictor
from wsi_idc.models.cam import CamSpec
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint
from wsi_idc.models.checkpoint_files import BUNDLED
from wsi_idc.runtime.device import select_device
from wsi_idc.training.probe import choose_probe, set_head

_NUM_FITTED = 1000


def fit_head(checkpoint: Checkpoint, pack: Pack, rows: NDArray[np.int64]) -> Checkpoint:
    """Fit the last layer of a network to the patches in ``rows``, as a linear probe."""
    classifier = checkpoint.build()
    with feature_extractor(classifier, device_config=select_device("cpu", "fp32")) as extract:
        batches = np.split(rows, range(PREDICT_BATCH_SIZE, len(rows), PREDICT_BATCH_SIZE))
        features = np.concatenate([part.features for part in extract(batches, pack.read)])
    label = pack.index["label"].to_numpy().astype(np.int64)[rows]
    half = len(rows) // 2
    probe = choose_probe(
        *(features[:half], label[:half], features[half:], label[half:]), class_weight=np.ones(2)
    )
    set_head(classifier, probe)
    return replace(checkpoint, state=classifier.network.state_dict())


def main() -> None:
    """Compare both precisions on labelled patches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--patches", type=int, default=2000)
    parser.add_argument("--model", default="cnn-bn", help="Name of a network, or a run.")
    parser.add_argument("--input-size", type=int, default=0)
    options = parser.parse_args()
    pack = Pack(options.pack)
    rows = np.flatnonzero(pack.index["label"] >= 0)
    order = np.random.default_rng(0).permutation(rows)
    rows, others = np.sort(order[: options.patches]), order[options.patches :][:_NUM_FITTED]
    if (best := Path(options.model, "best.pt")).exists():
        checkpoint = load_checkpoint(best)
        spec = checkpoint.input
        name = f"{checkpoint.architecture} at {spec.input_px or spec.patch_px} px, trained"
    else:
        checkpoint, name = make_checkpoint(options.model, input_size=options.input_size, pack=pack)
        if options.model != BUNDLED:
            checkpoint = fit_head(checkpoint, pack, others)
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
