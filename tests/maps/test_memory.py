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
_NUM_PATCHES, _A_PATIENT, _PATCH_PX = 20_000, 100, 32


def resident_mb() -> float:
    return int(STATM.read_text().split()[1]) * resource.getpagesize() / 2**20


def test_pages_that_were_read_are_given_back(cohort: Pack, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pack_module, "_HELD_BYTES", 10 * 7500)
    own = Pack(cohort.path)
    for start in range(0, 60, 4):
        rows = np.arange(start, start + 4)
        np.testing.assert_array_equal(own.read(rows), cohort.patches[rows])
    assert own._held <= 10 * 7500


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="only Linux says what is resident")
def test_memory_stays_flat_over_many_patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pack = drawn_pack(tmp_path / "p.h5", _NUM_PATCHES, a_patient=_A_PATIENT, patch_px=_PATCH_PX)
    checkpoint, _ = make_checkpoint("cnn-bn", input_size=0, pack=pack)
    seen = []
    original = MapBuilder.patient_map

    def noting(*args):
        seen.append(resident_mb())
        return original(*args)

    monkeypatch.setattr(MapBuilder, "patient_map", noting)
    builder = MapBuilder(Predictor((checkpoint,)), select_device("cpu"), tmp_path / "maps")
    report = builder.build(PackSource(pack, pack.patients))
    assert len(report.made) == _NUM_PATCHES // _A_PATIENT == len(seen)
    tenth = len(seen) // 10
    # 60 MB of pixels go through, and as much is held at most at any time.
    assert max(seen[tenth:]) < 1.05 * max(seen[:tenth]) + pack_module._HELD_BYTES / 2**20
