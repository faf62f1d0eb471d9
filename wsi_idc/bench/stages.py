"""What each part of making maps takes by itself."""

from collections.abc import Sequence
from functools import partial

import torch

from wsi_idc.bench.forward_only import BareForward
from wsi_idc.bench.timing import Variant, interleave
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predict import RawPrediction
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.map_writer import write_map
from wsi_idc.models.cam import cam_extractor
from wsi_idc.models.classifier import to_images
from wsi_idc.runtime.transfer import DeviceTransfer

_NUM_ROUNDS = 5
_NUM_PATIENTS = 10


def map_parts(
    bare: BareForward, pack: Pack, builder: MapBuilder, patients: Sequence[str]
) -> dict[str, float]:
    """Return what each part takes, ms a patch: read, copy, resize, forward, CAM, write.

    Args:
        bare: The network and its batch.
        pack: The data.
        builder: What is written, and where to.
        patients: Some of these are written, after they have been predicted once.
    """
    compute, classifier = builder.device_config, bare.classifier
    rows, link = pack.rows_of(patients[0]), DeviceTransfer(builder.device_config.device)
    rows = rows[torch.arange(len(bare.ready)).numpy() % len(rows)]
    patches = pack.patches[rows]
    on_device = link.upload(patches).get()
    assert builder.cam is not None
    cam = vars(builder.cam.resolve(classifier))

    @torch.inference_mode()
    def run(what: str) -> int:
        with compute.autocast():
            if what == "copy":
                link.upload(patches).get()
            elif what == "resize":
                classifier.preprocess(to_images(on_device))
            elif what == "resize, forward":
                classifier(on_device)
            else:
                with cam_extractor(classifier, **cam) as extract:
                    extract(on_device)
        return len(rows)

    def read() -> int:
        return len(pack.patches[rows])

    few = patients[:_NUM_PATIENTS]
    source = PackSource(pack, few)
    said = {patient: _said(builder, pack, patient) for patient in few}

    def write() -> int:
        for patient in few:
            patient_map = source.patient_map(builder, patient, said[patient])
            write_map(map_path(builder.out, patient), patient_map)
        return sum(len(one.logit) for one in said.values())

    names = ("copy", "resize", "resize, forward", "resize, forward, CAM")
    ways: dict[str, Variant] = {
        "read": read,
        **{name: partial(run, name) for name in names},
        "write": write,
    }
    found = interleave(ways, num_rounds=_NUM_ROUNDS, compute=compute, what="parts").milliseconds()
    forward, with_cam = found.pop("resize, forward"), found.pop("resize, forward, CAM")
    write_ms = found.pop("write")
    return {
        **found,
        "forward": max(0.0, forward - found["resize"]),
        "CAM": max(0.0, with_cam - forward),
        "write": write_ms,
    }


def _said(builder: MapBuilder, pack: Pack, patient: str) -> RawPrediction:
    rows = pack.rows_of(patient)
    found = builder.predictor.predict(
        pack,
        rows,
        device_config=builder.device_config,
        batch_size=builder.batch_size,
        cam=builder.cam,
    )
    return RawPrediction.concatenate(list(found))
