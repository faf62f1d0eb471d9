"""Simulate the time that a cohort takes on a cluster; docs/scaling.md has the table.

    python tools/simulate_cluster.py

The sizes of the slides are random. ``assign_shards`` divides the slides into shards. Each shard is
a task on one GPU or two cores. Two times are computed for a slide: the time to compute its patches,
and the time to read its bytes and write its map. The longer time counts. All tasks share one disk.
"""

import argparse
import sys
from dataclasses import dataclass, replace

import numpy as np

from wsi_idc.maps.plan import assign_shards

# Bytes per patch in a pack (50 x 50 x 3 and a row of the index), and in a map with CAM and image.
# Empty cells are included in a map: patient 8864 has 18 MB for 1,133 patches.
PACK_BYTES, MAP_BYTES = 7_540, 16_150
# Bytes per patch of a slide: JPEG of 200 x 200 px at level 0, read from a level with downsample 4.
SLIDE_BYTES = 25_000


@dataclass(frozen=True)
class Cluster:
    """Computing power and disk of a cluster.

    Attributes:
        gpus: Number of GPUs; each runs one task.
        rate: Patches per second of one GPU, without reading and writing.
        disk: MB per second of the shared disk, for all tasks together.
        node: MB per second that one task can read at most, because its cores decode the slide.
        start: Seconds from the start of a task to its first patch.
    """

    gpus: int
    rate: float
    disk: float
    node: float
    start: float


# Measured on two CPU cores: the rate by `wsi-idc bench map` with cnn-bn at 50 px, the disk by
# `wsi-idc doctor`, and the start by `wsi-idc map` for an existing map.
MEASURED = Cluster(1, rate=1163, disk=225, node=225, start=11)


@dataclass(frozen=True)
class Slides:
    """Number of patches and MB to read, for each slide."""

    patches: np.ndarray
    megabytes: np.ndarray

    @staticmethod
    def drawn(num: int, *, median: int, spread: float, bytes_a_patch: float, seed: int) -> "Slides":
        """Draw the numbers of patches from a log-normal distribution with the given median."""
        rng = np.random.default_rng(seed)
        patches = np.maximum(1, rng.lognormal(np.log(median), spread, num)).astype(np.int64)
        return Slides(patches, patches * bytes_a_patch / 1e6)


def simulate(slides: Slides, cluster: Cluster) -> dict[str, float | str]:
    """Return the time in hours, the fraction in which the GPUs compute, and the bottleneck."""
    sizes = {str(number): int(size) for number, size in enumerate(slides.patches)}
    disk = min(cluster.disk / cluster.gpus, cluster.node)
    part_of = np.array(list(assign_shards(sizes, cluster.gpus).items()), dtype=np.int64)
    hours, busy = [], 0.0
    for part in range(cluster.gpus):
        own = part_of[part_of[:, 1] == part, 0]
        compute = slides.patches[own] / cluster.rate
        read = slides.megabytes[own] / disk
        write = slides.patches[own] * MAP_BYTES / 1e6 / disk
        seconds = np.maximum(compute, read + write)
        hours.append((cluster.start + seconds.sum()) / 3600)
        busy += compute.sum() / 3600
    total = max(hours)
    wait = "the network"
    if busy / (total * cluster.gpus) < 0.9:
        shared = cluster.disk / cluster.gpus < cluster.node
        wait = "the shared disk" if shared else "the cores that decode"
        if len(slides.patches) < 4 * cluster.gpus or cluster.start / 3600 > 0.2 * total:
            wait = "starting up, and the largest patient"
    return {"hours": total, "busy": busy / (total * cluster.gpus), "waits for": wait}


def table(rate: float, disk: float) -> str:
    """Return the table of docs/scaling.md."""
    pack = Slides.drawn(279, median=967, spread=0.45, bytes_a_patch=PACK_BYTES, seed=0)
    slides = Slides.drawn(100_000, median=4_000, spread=0.8, bytes_a_patch=SLIDE_BYTES, seed=0)
    rows = [
        "| work | tasks | patches | to read | maps | time | computing | bottleneck |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, work, each in (
        ("the Kaggle set, two CPU cores a task", pack, MEASURED),
        ("the Kaggle set, a GPU a task", pack, Cluster(1, rate, disk, 2000, start=20)),
        ("100,000 slides, a GPU a task", slides, Cluster(1, rate, disk, 250, start=20)),
    ):
        for gpus in (1, 8, 64):
            result = simulate(work, replace(each, gpus=gpus))
            total = int(work.patches.sum())
            hours = float(result["hours"])
            time = f"{hours * 3600:.0f} s" if hours < 1 else f"{hours:.0f} h"
            rows.append(
                f"| {name} | {gpus} | {total / 1e6:.1f} M | {work.megabytes.sum() / 1e3:,.0f} GB "
                f"| {total * MAP_BYTES / 1e9:,.0f} GB | {time} "
                f"| {float(result['busy']):.0%} | {result['waits for']} |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=8_000, help="patches per second of one GPU")
    parser.add_argument("--disk", type=float, default=5_000, help="MB per second of the disk")
    sys.stdout.write(table(**vars(parser.parse_args())) + "\n")
