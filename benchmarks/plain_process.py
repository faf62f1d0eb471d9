"""Compare `wsi-idc map` with the plain script of `bench map`, as complete processes by turns.

Both map the same synthetic patches with the same network, default flags and random weights. The
script prints a table in Markdown: medians, and the range of the ratios.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from processes import run_process

from wsi_idc.bench.fixtures import drawn_pack, make_checkpoint, write_pngs
from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.models.checkpoint import save_checkpoint

_PLAIN = f"""
from pathlib import Path
from wsi_idc.bench.baseline import baseline_map
from wsi_idc.models.checkpoint import load_checkpoint
classifier = load_checkpoint(Path("model.pt")).build()
files = sorted(Path("png").rglob("*.png"))
baseline_map(classifier.eval(), files, batch_size={PREDICT_BATCH_SIZE}, out=Path("plain"))
"""
_MAP = ["map", "--all", "--data", "idc.h5", "--checkpoint", "model.pt", "--overwrite", "--quiet"]


def measure(model: str, folder: Path, *, num_patches: int, rounds: int) -> str:
    """Return a row of the table; ``folder`` is an empty folder for files."""
    pack = drawn_pack(folder / "idc.h5", num_patches, a_patient=num_patches)
    checkpoint, _ = make_checkpoint(model, input_size=0, pack=pack)
    save_checkpoint(folder / "model.pt", replace(checkpoint, metrics={"drawn": {}}))
    write_pngs(pack, np.arange(num_patches), folder / "png")
    (folder / "plain").mkdir()
    seconds = []
    for _ in range(rounds):
        plain = run_process([sys.executable, "-c", _PLAIN], folder)
        mapped = run_process([sys.executable, "-m", "wsi_idc", *_MAP], folder)
        print(f"{model}: plain {plain}, map {mapped}", file=sys.stderr, flush=True)
        seconds.append((plain.seconds, mapped.seconds))
    plain_s, map_s = np.array(seconds).T
    ratio = plain_s / map_s
    spread = f"{np.median(ratio):.1f} ({ratio.min():.1f} to {ratio.max():.1f})"
    times = f"{np.median(plain_s):.1f} s | {np.median(map_s):.1f} s"
    return f"| {model}, {num_patches:,} patches | {times} | {spread} |"


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="resnet18,resnet50,efficientnet-b0")
    parser.add_argument("--patches", type=int, default=1000, help="Patches of each run.")
    parser.add_argument("--rounds", type=int, default=5, help="Runs of each program.")
    arguments = parser.parse_args()
    print("| network | plain script | wsi-idc map | ratio |\n|---|---:|---:|---:|", flush=True)
    for model in arguments.models.split(","):
        with tempfile.TemporaryDirectory(prefix="wsi-idc-bench-") as folder:
            numbers = {"num_patches": arguments.patches, "rounds": arguments.rounds}
            print(measure(model, Path(folder), **numbers), flush=True)


if __name__ == "__main__":
    main()
