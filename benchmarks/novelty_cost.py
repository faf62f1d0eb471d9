"""Measure how much longer maps take with novelty than without it.

The CPU time varies less than the duration if other programs use the machine.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from options import benchmark_data, make_parser

from wsi_idc.bench.fixtures import choose_patients, make_checkpoint
from wsi_idc.bench.timing import interleave, medians
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.models.checkpoint_files import BUNDLED
from wsi_idc.runtime.device import select_device


def measure_cost(
    builder: MapBuilder, pack: Pack, patients: Sequence[str], *, num_rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Make the maps with and without novelty in turns, in one process.

    Args:
        builder: Settings of the maps; its checkpoint has a novelty model. Its folder is removed.
        pack: Pack with the patients.
        patients: Patients to map in each round.
        num_rounds: Number of measurements of each variant.

    Returns:
        Median patches per second of each variant, and the relative increases of the duration and
        of the CPU time: medians over the rounds.
    """
    (checkpoint,) = builder.predictor.checkpoints
    without = replace(builder, predictor=Predictor((replace(checkpoint, novelty=None),)))

    variants = {"with novelty": builder, "without novelty": without}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in variants}

    def make_maps(name: str) -> int:
        shutil.rmtree(builder.out, ignore_errors=True)
        started = time.process_time()
        report = variants[name].build(PackSource(pack, patients))
        cpu_seconds[name].append(time.process_time() - started)
        return sum(report.patches.values())

    rates = interleave(
        {name: partial(make_maps, name) for name in variants},
        num_rounds=num_rounds,
        device_config=builder.device_config,
        label="maps",
    )
    novelty_seconds, plain_seconds = (np.array(cpu_seconds[name][1:]) for name in variants)
    costs = {
        "duration": float(np.median(rates["without novelty"] / rates["with novelty"])) - 1,
        "CPU time": float(np.median(novelty_seconds / plain_seconds)) - 1,
    }
    return medians(rates), costs


def main() -> None:
    """Print the rate of each variant, and the cost of novelty."""
    parser = make_parser(__doc__, patches=5_000)
    parser.add_argument("--patient", action="append", help="Id of a patient; may be repeated.")
    arguments = parser.parse_args()
    with benchmark_data(arguments) as data:
        checkpoint, name = make_checkpoint(BUNDLED, input_size=0, pack=data.pack)
        device_config = select_device(arguments.device)
        builder = MapBuilder(Predictor((checkpoint,)), device_config, data.folder / "maps")
        patients = arguments.patient or choose_patients(data.pack, arguments.patches)
        rates, costs = measure_cost(builder, data.pack, patients, num_rounds=arguments.rounds)
        print(f"{name}, {device_config}, {len(patients)} patients of {data.about}")
    for variant, rate in rates.items():
        print(f"{variant:<16} {rate:,.0f} patches/s")
    for what, cost in costs.items():
        print(f"novelty adds {cost:+.1%} to the {what} (median of {arguments.rounds} rounds)")


if __name__ == "__main__":
    main()
