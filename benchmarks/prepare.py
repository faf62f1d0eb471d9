"""Compare wsi-idc prepare, with different numbers of workers, with a plain script."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from options import benchmark_data, choose_rows, make_parser, print_result
from PIL import Image

from wsi_idc.bench.fixtures import BenchmarkData, write_pngs
from wsi_idc.bench.timing import (
    COMMAND,
    PLAIN,
    BenchmarkResult,
    Variant,
    interleave,
    medians,
    peak_memory,
)
from wsi_idc.data.prepare import prepare
from wsi_idc.runtime.device import select_device
from wsi_idc.runtime.resources import available_cores

NUM_PATCHES = 20_000
_WHITE = 255


def bench_prepare(data: BenchmarkData, *, num_patches: int, num_rounds: int) -> BenchmarkResult:
    """Measure packing with 1, 2, 4, ... workers, up to the number of available cores.

    Args:
        data: Pack of the patches, and folder for PNG files.
        num_patches: Approximate number of patches per round.
        num_rounds: Number of measurements of each variant.
    """
    pack, folder = data.pack, data.folder
    rows = choose_rows(pack, num_patches)
    files = write_pngs(pack, rows, folder / "png")
    device_config = select_device("cpu")
    side, cores = pack.info.patch_px, available_cores()
    out = folder / "out"
    out.mkdir()

    def command(num_workers: int) -> int:
        tree, packed = folder / "png", out / "pack.h5"
        report = prepare(tree, packed, patch_px=side, mpp=1.0, num_workers=num_workers)
        return report.num_patches

    numbers = sorted({1, cores, *(2**power for power in range(1, 5) if 2**power < cores)})
    variants: dict[str, Variant] = {
        f"{number} workers": partial(command, number) for number in numbers[:-1]
    }
    variants[COMMAND] = partial(command, numbers[-1])
    variants[PLAIN] = partial(baseline_prepare, files, patch_px=side, out=out / "plain.h5")
    variants[COMMAND]()
    memory = peak_memory(device_config)
    rates = interleave(
        variants, num_rounds=num_rounds, device_config=device_config, label="prepare"
    )
    median_rates = medians(rates)
    best = max((name for name in variants if name != PLAIN), key=median_rates.__getitem__)
    return BenchmarkResult(
        what="prepare",
        settings={
            "machine": f"{cores} CPU cores",
            "data": data.about,
            "patches a round": len(rows),
            "patients a round": len(np.unique(pack.index["patient"].to_numpy()[rows])),
            "rounds": num_rounds,
        },
        rates=median_rates,
        ratios=medians({f"{COMMAND} / {PLAIN}": rates[COMMAND] / rates[PLAIN]}),
        peak_memory_mb=memory,
        hints=(f"--num-workers {numbers[-1] if best == COMMAND else best.split()[0]}",),
    )


def baseline_prepare(files: Sequence[Path], *, patch_px: int, out: Path) -> int:
    """Pack PNG files with a plain script, one patient at a time; return the number of files."""
    by_patient: dict[str, list[Path]] = {}
    for path in files:
        by_patient.setdefault(path.parents[1].name, []).append(path)
    with h5py.File(out, "w") as file:
        for patient, members in by_patient.items():
            pixels = np.full((len(members), patch_px, patch_px, 3), _WHITE, np.uint8)
            for patch, path in zip(pixels, members, strict=True):
                with Image.open(path) as image:
                    array = np.asarray(image.convert("RGB"))
                patch[: len(array), : array.shape[1]] = array
            file[f"{patient}/patches"] = pixels
            file[f"{patient}/label"] = [int(path.parent.name) for path in members]
    return len(files)


if __name__ == "__main__":
    arguments = make_parser(__doc__, patches=NUM_PATCHES).parse_args()
    with benchmark_data(arguments) as data:
        sizes = {"num_patches": arguments.patches, "num_rounds": arguments.rounds}
        print_result(bench_prepare(data, **sizes))
