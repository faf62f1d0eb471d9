"""Measure how much longer maps take with novelty than without it."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from options import benchmark_data, make_parser

from wsi_idc.bench.fixtures import choose_patients, make_checkpoint
from wsi_idc.bench.timing import interleave
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.models.checkpoint_files import BUNDLED
from wsi_idc.runtime.device import select_device


def measure_cost(
    builder: MapBuilder, pack: Pack, patients: Sequence[str], *, num_rounds: int
) -> tuple[dict[str, float], float]:
    """Make the maps with and without novelty in turns, in one process.

    Args:
        builder: Settings of the maps; its checkpoint has a novelty model. Its folder is removed.
        pack: Pack with the patients.
        patients: Patients to map in each round.
        num_rounds: Number of measurements of each variant.

    Returns:
        Median patches per second of each variant, and the relative increase of the time: the median
        over the rounds.
    """
    (checkpoint,) = builder.predictor.checkpoints
    without = replace(builder, predictor=Predictor((replace(checkpoint, novelty=None),)))

    def make_maps(builder: MapBuilder) -> int:
        shutil.rmtree(builder.out, ignore_errors=True)
        return sum(builder.build(PackSource(pack, patients)).patches.values())

    variants = {"with novelty": builder, "without novelty": without}
    rates = interleave(
        {name: partial(make_maps, variant) for name, variant in variants.items()},
        num_rounds=num_rounds,
        device_config=builder.device_config,
        label="maps",
    )
    cost = float(np.median(rates["without novelty"] / rates["with novelty"])) - 1
    return {name: float(np.median(values)) for name, values in rates.items()}, cost


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
        rates, cost = measure_cost(builder, data.pack, patients, num_rounds=arguments.rounds)
        print(f"{name}, {device_config}, {len(patients)} patients of {data.about}")
    for variant, rate in rates.items():
        print(f"{variant:<16} {rate:,.0f} patches/s")
    print(f"novelty costs {cost:+.1%} of the time (median of {arguments.rounds} rounds)")


if __name__ == "__main__":
    main()
