"""Measure predictions with one batch at a time, and with several batches in flight, by turns.

The script prints a table in Markdown. Other processes that only compute keep the cores busy.
"""

import argparse
from contextlib import ExitStack
from functools import partial

import numpy as np
from options import benchmark_data, make_parser
from processes import busy_processes

from wsi_idc.bench.fixtures import make_checkpoint
from wsi_idc.bench.timing import Rates, interleave
from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.data.pack import Pack
from wsi_idc.inference.forward import batches_in_flight
from wsi_idc.inference.predict import BatchPredictor
from wsi_idc.inference.predictor import Predictor
from wsi_idc.models.cam import CamSpec
from wsi_idc.runtime.device import select_device

_ONE, _SEVERAL = "one batch", "in flight"


def measure(
    pack: Pack, model: str, precision: str, *, num_patches: int, num_rounds: int
) -> tuple[str, Rates]:
    """Return the name of the network, and patches per second of both variants in each round."""
    checkpoint, name = make_checkpoint(model, input_size=0, pack=pack)
    predictor, config = Predictor((checkpoint,)), select_device("cpu", precision)
    rows = np.arange(min(num_patches, len(pack)))
    batches = np.split(rows, range(PREDICT_BATCH_SIZE, len(rows), PREDICT_BATCH_SIZE))

    def predict(predict_batches: BatchPredictor) -> int:
        return sum(len(part.logit) for part in predict_batches(batches, read=pack.read))

    with ExitStack() as stack:
        variants = {}
        for variant, number in (
            (_ONE, 1),
            (_SEVERAL, batches_in_flight(config, PREDICT_BATCH_SIZE)),
        ):
            predict_batches = stack.enter_context(
                predictor.batch_predictor(device_config=config, cam=CamSpec(), num_in_flight=number)
            )
            variants[variant] = partial(predict, predict_batches)
        return name, interleave(variants, num_rounds=num_rounds, device_config=config, label=name)


def main() -> None:
    """Print a row for each network, precision and number of busy processes."""
    parser: argparse.ArgumentParser = make_parser(__doc__, patches=512)
    parser.add_argument("--models", default="bundled,cnn-bn", help="Names, separated by commas.")
    parser.add_argument("--precisions", default="bf16,fp32", help="Separated by commas.")
    parser.add_argument("--busy", default="0,4,8", help="Numbers of busy processes.")
    arguments = parser.parse_args()
    print("| busy processes | network | precision | one batch | in flight | ratio |")
    print("|---:|---|---|---:|---:|---:|")
    with benchmark_data(arguments) as data:
        for busy in map(int, arguments.busy.split(",")):
            for model in arguments.models.split(","):
                for precision in arguments.precisions.split(","):
                    with busy_processes(busy):
                        name, rates = measure(
                            *(data.pack, model, precision),
                            num_patches=arguments.patches,
                            num_rounds=arguments.rounds,
                        )
                    one, several = (np.median(rates[key]) for key in (_ONE, _SEVERAL))
                    ratio = np.median(rates[_SEVERAL] / rates[_ONE])
                    print(
                        f"| {busy} | {name} | {precision} | {one:,.0f} | {several:,.0f} "
                        f"| {ratio:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
