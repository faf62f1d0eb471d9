"""``bench loader``: batches to the device, from a pack and from PNG files through a DataLoader."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from wsi_idc.bench.baseline import PngFiles, plain_transform
from wsi_idc.bench.fixtures import rows_of, some_patients, write_pngs
from wsi_idc.bench.timing import COMMAND, BenchmarkResult, Variant, interleave, machine, peak_memory
from wsi_idc.data.pack import Pack
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.prefetch import prefetch
from wsi_idc.runtime.resources import available_cores
from wsi_idc.runtime.transfer import DeviceTransfer

_PATCHES = 4_000


def bench_loader(
    pack: Pack,
    *,
    about: str,
    batch_size: int,
    num_patches: int,
    num_rounds: int,
    compute: DeviceConfig,
    folder: Path,
) -> BenchmarkResult:
    """Measure how fast batches come to the device; nothing is computed of them.

    Args:
        pack: The data.
        about: What they are, for the report.
        batch_size: Patches at a time.
        num_patches: Of a round, about; 0: 4,000.
        num_rounds: How often each way is measured.
        compute: Whose device they come to.
        folder: For PNG files.
    """
    rows = rows_of(pack, some_patients(pack, num_patches or _PATCHES))
    shuffled = np.random.default_rng(0).permutation(rows)
    files = write_pngs(pack, rows, folder / "png")
    link, device = DeviceTransfer(compute.device), compute.device

    def from_pack(order: np.ndarray) -> int:
        parts = (order[at : at + batch_size] for at in range(0, len(order), batch_size))
        return sum(
            len(sent.get())
            for sent in prefetch(lambda some: link.upload(pack.patches[some]), parts)
        )

    def from_files(num_workers: int) -> int:
        dataset = PngFiles(files, plain_transform(None, pack.info.mean, pack.info.std))
        loader = DataLoader(dataset, batch_size, num_workers=num_workers)
        return sum(len(images.to(device)) for images, _ in loader)

    workers = range(available_cores() + 1)
    ways: dict[str, Variant] = {
        COMMAND: partial(from_pack, shuffled),
        "in order": partial(from_pack, rows),
    }
    ways |= {f"PNG, {num} workers": partial(from_files, num) for num in workers}
    with torch.inference_mode():
        rates = interleave(ways, num_rounds=num_rounds, compute=compute, what="loader")
    best = max(workers, key=lambda num: rates.median(f"PNG, {num} workers"))
    plain = f"PNG, {best} workers"
    return BenchmarkResult(
        what="loader",
        settings={
            "machine": machine(compute),
            "data": about,
            "batch size": batch_size,
            "patches a round": len(rows),
            "rounds": num_rounds,
        },
        rates=rates.medians(),
        ratios={f"{COMMAND} / plain": rates.ratio(COMMAND, plain)},
        peak_memory_mb=peak_memory(compute),
        hints=(f"a DataLoader of PNG files is fastest with {best} workers; a pack needs none",),
    )
