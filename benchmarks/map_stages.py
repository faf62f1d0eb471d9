"""Measure each stage of making maps separately, in ms per patch."""

from collections.abc import Sequence
from functools import partial

import torch
from options import benchmark_data, make_parser

from wsi_idc.bench.fixtures import choose_patients, make_checkpoint
from wsi_idc.bench.forward_only import BareForward
from wsi_idc.bench.timing import Variant, interleave, medians
from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.map_writer import MapReport, write_map
from wsi_idc.models.cam import cam_extractor
from wsi_idc.models.classifier import to_images
from wsi_idc.runtime.device import select_device
from wsi_idc.runtime.transfer import DeviceTransfer

_NUM_PATIENTS = 10


def measure_stages(
    bare: BareForward, pack: Pack, builder: MapBuilder, patients: Sequence[str], *, num_rounds: int
) -> dict[str, float]:
    """Measure reading, copying, resizing, forward pass, CAM and writing in ms per patch.

    Args:
        bare: Network, and a batch of patches.
        pack: Pack of the patches.
        builder: Folder of the maps, predictor, device and CAM.
        patients: Patients; maps of the first ten are predicted before, and then written repeatedly.
        num_rounds: Number of measurements of each stage.
    """
    device_config, classifier = builder.device_config, bare.classifier
    rows, transfer = pack.rows_of(patients[0]), DeviceTransfer(device_config.device)
    rows = rows[torch.arange(len(bare.ready)).numpy() % len(rows)]
    patches = pack.patches[rows]
    on_device = transfer.upload(patches).get()
    assert builder.cam is not None
    cam = vars(builder.cam.resolve(classifier))

    @torch.inference_mode()
    def run(stage: str) -> int:
        with device_config.autocast():
            if stage == "copy":
                transfer.upload(patches).get()
            elif stage == "resize":
                classifier.preprocess(to_images(on_device))
            elif stage == "forward":
                classifier(on_device)
            else:
                with cam_extractor(classifier, **cam) as extract:
                    extract(on_device)
        return len(rows)

    source = PackSource(pack, patients[:_NUM_PATIENTS])
    builders = dict(source.predict(builder, MapReport()))

    def write() -> int:
        for patient, build in builders.items():
            write_map(map_path(builder.out, patient), build())
        return sum(len(pack.rows_of(patient)) for patient in builders)

    variants: dict[str, Variant] = {
        "read": lambda: len(pack.patches[rows]),
        **{stage: partial(run, stage) for stage in ("copy", "resize", "forward", "CAM")},
        "write": write,
    }
    rates = interleave(variants, num_rounds=num_rounds, device_config=device_config, label="stages")
    times = medians({name: 1000 / rate for name, rate in rates.items()})
    # Subtract earlier stages: "forward" includes resizing, and "CAM" includes the forward pass.
    times["CAM"] = max(0.0, times["CAM"] - times["forward"])
    times["forward"] = max(0.0, times["forward"] - times["resize"])
    return times


if __name__ == "__main__":
    parser = make_parser(__doc__, patches=1_000)
    parser.add_argument("--model", default="cnn-bn")
    parser.add_argument("--batch-size", type=int, default=PREDICT_BATCH_SIZE)
    arguments = parser.parse_args()
    with benchmark_data(arguments) as data:
        pack, maps = data.pack, data.folder / "maps"
        device_config = select_device(arguments.device)
        checkpoint, name = make_checkpoint(arguments.model, input_size=0, pack=pack)
        batch = pack.patches[torch.arange(arguments.batch_size).numpy() % len(pack)]
        maps.mkdir()
        predictor = Predictor((checkpoint,))
        builder = MapBuilder(predictor, device_config, maps, batch_size=arguments.batch_size)
        patients = choose_patients(pack, arguments.patches)
        bare = BareForward(checkpoint, batch, device_config)
        print(f"{name}, {data.about}")
        stages = measure_stages(bare, pack, builder, patients, num_rounds=arguments.rounds)
        for stage, milliseconds in stages.items():
            print(f"{stage:<8} {milliseconds:.3f} ms per patch")
