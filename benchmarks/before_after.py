"""Compare `wsi-idc map` of this checkout with that of an earlier version, by turns.

git worktree add ../before COMMIT
python benchmarks/before_after.py ../before

Each run is a complete process with default flags. Both versions use the same Python, packages,
synthetic patches and checkpoints. Networks have random weights, except the bundled models.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from processes import Usage, busy_processes, run_process

from wsi_idc.bench.fixtures import drawn_pack, make_checkpoint
from wsi_idc.models.checkpoint import save_checkpoint

_AFTER = Path(__file__).resolve().parents[1]
_BUNDLED_FILE = Path("wsi_idc/models/bundled/idc.pt")
_OLD, _OWN = "the earlier bundled model", "the bundled model of each version"
_QUICK = 20  # --quick: one in 20 patches


class Row(NamedTuple):
    """Work that both versions do; without patches, they map a slide."""

    model: str
    patches: int = 0
    per_patient: int = 10_000
    busy: int = 0

    @property
    def title(self) -> str:
        """Text that describes the work."""
        patients = -(-self.patches // self.per_patient)
        work = f"{self.patches:,} patches" if self.patches else "a slide"
        work += f" of {patients:,} patients" if patients > 1 else ""
        busy = f", beside {self.busy} busy processes" if self.busy else ""
        return f"{self.model}, {work}{busy}"


_FIRST = Row(_OWN, 4)  # not measured: Python compiles modules, and files are read into memory
ROWS = {
    "start": Row(_OWN, 23),
    "start-cnn": Row("cnn-bn", 23),
    "bundled": Row(_OLD, 1000),
    "cnn": Row("cnn-bn", 1000),
    "resnet18": Row("resnet18", 1000),
    "resnet50": Row("resnet50", 400),
    "efficientnet": Row("efficientnet-b0", 400),
    "patients": Row(_OLD, 1000, per_patient=4),
    "busy": Row(_OLD, 250, busy=8),
    "slide": Row(_OLD),
}


def compare(
    row: Row, folder: Path, *, before: Path, slide: Path | None, rounds: int
) -> list[tuple[Usage, Usage]]:
    """Return, for each round, the resources that a row takes before and after.

    Args:
        row: Work to measure.
        folder: Empty folder for files.
        before: Checkout of the earlier version.
        slide: Slide of a row without patches.
        rounds: Number of rounds.
    """
    pack = drawn_pack(folder / "idc.h5", max(row.patches, 64), a_patient=row.per_patient)
    if row.model == _OLD:
        checkpoint = before / _BUNDLED_FILE
    elif row.model != _OWN:
        network, _ = make_checkpoint(row.model, input_size=0, pack=pack)
        checkpoint = folder / "model.pt"
        save_checkpoint(checkpoint, replace(network, metrics={"drawn": {}}))  # as after a training
    if slide is None:
        drawn_pack(folder / "idc.h5", row.patches, a_patient=row.per_patient)
    work = ["--slide", slide] if slide else ["--all", "--data", folder / "idc.h5"]
    command = [sys.executable, "-m", "wsi_idc", "map", *work, "--quiet", "--checkpoint"]

    def run(source: Path) -> Usage:
        shutil.rmtree(folder / "maps", ignore_errors=True)
        model = source / _BUNDLED_FILE if row.model == _OWN else checkpoint
        return run_process([*command, model], folder, os.environ | {"PYTHONPATH": str(source)})

    usages = []
    with busy_processes(row.busy):
        for _ in range(rounds):
            usages.append((run(before), run(_AFTER)))
            print(f"{row.title}: {usages[-1]}", file=sys.stderr, flush=True)
    return usages


def format_row(row: Row, rounds: Sequence[tuple[Usage, Usage]]) -> str:
    """Return a row of the table in Markdown: medians, and medians of the ratios of each round."""
    before, after = np.array(rounds).swapaxes(0, 1)[:, :, :2]  # (round, wall and CPU seconds)
    cells = [row.title]
    for kind in range(2):
        ratio = before[:, kind] / after[:, kind]
        cells += [f"{np.median(values[:, kind]):.1f} s" for values in (before, after)]
        cells.append(f"{np.median(ratio):.1f} ({ratio.min():.1f} to {ratio.max():.1f})")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print a row for each work."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, help="Checkout of the earlier version.")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"Some of {','.join(ROWS)}.")
    parser.add_argument("--slide", type=Path, help="Slide of the last row.")
    parser.add_argument("--rounds", type=int, default=5, help="Runs of each version.")
    parser.add_argument("--quick", action="store_true", help="One round and few patches.")
    arguments = parser.parse_args()
    before, names = arguments.before.resolve(), arguments.rows.split(",")
    if not (before / _BUNDLED_FILE).is_file() or not set(names) <= ROWS.keys():
        parser.error(f"give a checkout of wsi-idc, and rows among {', '.join(ROWS)}")
    print("| work | before | after | ratio | CPU before | CPU after | ratio |")
    print(f"|---|{'---:|' * 6}", flush=True)
    rows = [ROWS[name] for name in names if ROWS[name].patches or arguments.slide]
    if arguments.quick:
        rows = [row._replace(patches=-(-row.patches // _QUICK)) for row in rows]
        arguments.rounds = 1

    def measure(row: Row, rounds: int) -> list[tuple[Usage, Usage]]:
        slide = None if row.patches else arguments.slide.resolve()
        with tempfile.TemporaryDirectory(prefix="wsi-idc-bench-") as folder:
            return compare(row, Path(folder), before=before, slide=slide, rounds=rounds)

    measure(_FIRST, 1)
    for row in rows:
        print(format_row(row, measure(row, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
