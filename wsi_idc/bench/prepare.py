"""``bench prepare``: packing a patch tree, against Pillow in a loop."""

import logging
from functools import partial
from pathlib import Path

import numpy as np

from wsi_idc.bench.baseline import plain_prepare
from wsi_idc.bench.fixtures import rows_of, some_patients, write_pngs
from wsi_idc.bench.timing import COMMAND, PLAIN, BenchmarkResult, Variant, interleave, peak_memory
from wsi_idc.data.pack import Pack
from wsi_idc.data.prepare import prepare
from wsi_idc.runtime.device import select_device
from wsi_idc.runtime.resources import available_cores

_PATCHES = 20_000


def bench_prepare(
    pack: Pack, *, about: str, num_patches: int, num_rounds: int, folder: Path
) -> BenchmarkResult:
    """Measure packing on every number of workers up to the cores given, and the plain way.

    Args:
        pack: Whose patches are written as PNG files beforehand.
        about: What they are, for the report.
        num_patches: About so many; 0: 20,000.
        num_rounds: How often each way is measured.
        folder: For files and packs.
    """
    rows = rows_of(pack, some_patients(pack, num_patches or _PATCHES))
    files = write_pngs(pack, rows, folder / "png")
    compute = select_device("cpu")
    side, cores = pack.info.patch_px, available_cores()
    out = folder / "out"
    out.mkdir(exist_ok=True)

    def packed(num_workers: int) -> int:
        report = prepare(
            folder / "png", out / "pack.h5", patch_px=side, mpp=1.0, num_workers=num_workers
        )
        return report.num_patches

    numbers = sorted({1, cores, *(2**power for power in range(1, 5) if 2**power < cores)})
    ways: dict[str, Variant] = {f"{one} workers": partial(packed, one) for one in numbers[:-1]}
    ways[COMMAND] = partial(packed, numbers[-1])
    ways[PLAIN] = partial(plain_prepare, files, patch_px=side, out=out / "plain.h5")
    quiet = logging.getLogger("wsi_idc.data.prepare")
    level = quiet.level
    quiet.setLevel(logging.WARNING)
    try:
        ways[COMMAND]()
        memory = peak_memory(compute)
        rates = interleave(ways, num_rounds=num_rounds, compute=compute, what="prepare")
    finally:
        quiet.setLevel(level)
    best = max((way for way in ways if way != PLAIN), key=rates.median)
    workers = numbers[-1] if best == COMMAND else int(best.split()[0])
    return BenchmarkResult(
        what="prepare",
        settings={
            "machine": f"{cores} CPU cores",
            "data": about,
            "patches a round": len(rows),
            "patients a round": len(np.unique(pack.index["patient"].to_numpy()[rows])),
            "rounds": num_rounds,
        },
        rates=rates.medians(),
        ratios={f"{COMMAND} / {PLAIN}": rates.ratio(COMMAND, PLAIN)},
        peak_memory_mb=memory,
        hints=(f"--num-workers {workers}",),
    )
