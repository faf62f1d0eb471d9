import resource
from pathlib import Path

import numpy as np
import pytest

from wsi_idc.bench.fixtures import drawn_pack, make_checkpoint
from wsi_idc.data import pack as pack_module
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.runtime.device import select_device

STATM = Path("/proc/self/statm")
_NUM_PATCHES, _NUM_PER_PATIENT, _PATCH_PX = 6_000, 100, 64


def resident_mb() -> float:
    return int(STATM.read_text().split()[1]) * resource.getpagesize() / 2**20


def test_pages_that_were_read_are_released(cohort: Pack, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pack_module, "_MAX_MAPPED_BYTES", 10 * 7500)
    pack = Pack(cohort.path)
    for start in range(0, 60, 4):
        rows = np.arange(start, start + 4)
        np.testing.assert_array_equal(pack.read(rows), cohort.patches[rows])
    assert pack._mapped_bytes <= 10 * 7500


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="resident memory is known on Linux only")
def test_memory_does_not_grow_with_patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wsi_idc.bench.fixtures._DRAWN_CELLS", 8)
    pack = drawn_pack(
        tmp_path / "p.h5", _NUM_PATCHES, a_patient=_NUM_PER_PATIENT, patch_px=_PATCH_PX
    )
    checkpoint, _ = make_checkpoint("cnn-bn", input_size=16, pack=pack)
    resident = []
    original = MapBuilder.patient_map

    def record(*args):
        resident.append(resident_mb())
        return original(*args)

    monkeypatch.setattr(MapBuilder, "patient_map", record)
    builder = MapBuilder(Predictor((checkpoint,)), select_device("cpu"), tmp_path / "maps")
    report = builder.build(PackSource(pack, pack.patients))
    assert len(report.made) == _NUM_PATCHES // _NUM_PER_PATIENT == len(resident)
    tenth = len(resident) // 10
    # The run reads 74 MB of pixels, more than the permitted growth.
    assert (
        max(resident[tenth:]) < 1.05 * max(resident[:tenth]) + pack_module._MAX_MAPPED_BYTES / 2**20
    )
