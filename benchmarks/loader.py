"""Measure how fast batches are copied to the device, from a pack or from PNG files."""

from functools import partial

import numpy as np
import torch
from options import benchmark_data, choose_rows, make_parser, print_result
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, ToTensor

from wsi_idc.bench.baseline import PngFiles, worker_options
from wsi_idc.bench.fixtures import BenchmarkData, write_pngs
from wsi_idc.bench.timing import (
    COMMAND,
    BenchmarkResult,
    Variant,
    interleave,
    machine,
    medians,
    peak_memory,
)
from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.runtime.device import DeviceConfig, select_device
from wsi_idc.runtime.prefetch import prefetch
from wsi_idc.runtime.resources import available_cores
from wsi_idc.runtime.transfer import DeviceTransfer

NUM_PATCHES = 4_000


def bench_loader(
    data: BenchmarkData,
    *,
    batch_size: int,
    num_patches: int,
    num_rounds: int,
    device_config: DeviceConfig,
) -> BenchmarkResult:
    """Measure how fast batches are copied to the device, without a network.

    Args:
        data: Pack of the patches, and folder for PNG files.
        batch_size: Patches per batch.
        num_patches: Approximate number of patches per round.
        num_rounds: Number of measurements of each variant.
        device_config: Device to which the batches are copied.
    """
    pack = data.pack
    rows = choose_rows(pack, num_patches)
    files = write_pngs(pack, rows, data.folder / "png")
    transfer, device = DeviceTransfer(device_config.device), device_config.device

    def from_pack(order: np.ndarray) -> int:
        batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
        sent = prefetch(lambda batch: transfer.upload(pack.patches[batch]), batches)
        return sum(len(patches.get()) for patches in sent)

    def from_files(num_workers: int) -> int:
        transform = Compose([ToTensor(), Normalize(pack.info.mean, pack.info.std)])
        loader = DataLoader(PngFiles(files, transform), batch_size, **worker_options(num_workers))
        return sum(len(images.to(device)) for images, _ in loader)

    variants: dict[str, Variant] = {
        COMMAND: partial(from_pack, np.random.default_rng(0).permutation(rows)),
        "in order": partial(from_pack, rows),
    }
    workers = {f"PNG, {number} workers": number for number in range(available_cores() + 1)}
    variants |= {name: partial(from_files, number) for name, number in workers.items()}
    with torch.inference_mode():
        rates = interleave(
            variants, num_rounds=num_rounds, device_config=device_config, label="loader"
        )
    median_rates = medians(rates)
    best = max(workers, key=median_rates.__getitem__)
    return BenchmarkResult(
        what="loader",
        settings={
            "machine": machine(device_config),
            "data": data.about,
            "batch size": batch_size,
            "patches a round": len(rows),
            "rounds": num_rounds,
        },
        rates=median_rates,
        ratios=medians({f"{COMMAND} / plain": rates[COMMAND] / rates[best]}),
        peak_memory_mb=peak_memory(device_config),
        hints=(
            f"PNG files: a DataLoader is fastest with {workers[best]} workers; a pack needs none",
        ),
    )


if __name__ == "__main__":
    parser = make_parser(__doc__, patches=NUM_PATCHES)
    parser.add_argument("--batch-size", type=int, default=PREDICT_BATCH_SIZE)
    arguments = parser.parse_args()
    with benchmark_data(arguments) as data:
        print_result(
            bench_loader(
                data,
                batch_size=arguments.batch_size,
                num_patches=arguments.patches,
                num_rounds=arguments.rounds,
                device_config=select_device(arguments.device),
            )
        )
