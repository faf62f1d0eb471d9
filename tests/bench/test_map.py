from pathlib import Path

import numpy as np
import pytest

from wsi_idc.bench import baseline as plain
from wsi_idc.bench import map as mapping
from wsi_idc.bench.fixtures import drawn_pack, make_checkpoint
from wsi_idc.bench.map import MapBenchOptions, bench_map
from wsi_idc.bench.timing import BenchmarkResult, markdown_row
from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.pack import Pack
from wsi_idc.runtime.device import select_device

pytestmark = pytest.mark.usefixtures("no_workers")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "best_batch_size", lambda *_: 32)


def measure(pack: Pack, folder: Path, **options: object) -> BenchmarkResult:
    wanted = MapBenchOptions(num_patches=60, plain_patches=20, num_rounds=1, **options)
    return bench_map(wanted, pack, about="x", compute=select_device("cpu"), folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size"), [("cnn-bn", 0), ("resnet18", 128)])
def test_the_plain_way_says_the_same(cohort: Pack, tmp_path: Path, model: str, size: int):
    found = measure(cohort, tmp_path, model=model, input_size=size)
    assert found.differences["probability"] < 1e-5
    assert found.differences["CAM over its maximum"] < 1e-4
    assert set(found.rates) == {"bare", "command", "plain"}
    assert set(found.ratios) == {"command / bare", "command / plain"}
    assert set(found.parts) == {"read", "copy", "resize", "forward", "CAM", "write"}
    assert f"| {model} at {size or 50} px |" in markdown_row(found)


def test_a_difference_is_found(cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = mapping.plain_map

    def brighter(*args, **kwargs):
        said = original(*args, **kwargs)
        return plain.BaselineOutput(said.logit + np.float32([0, 1]), said.cam * 2)

    monkeypatch.setattr(mapping, "plain_map", brighter)
    found = measure(cohort, tmp_path)
    assert found.differences["probability"] > 0.01
    assert found.differences["CAM over its maximum"] == pytest.approx(0.5, abs=1e-3)


def test_without_torchcam_the_rest_goes_on(
    cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plain, "has_torchcam", lambda: False)
    found = measure(cohort, tmp_path)
    assert set(found.differences) == {"probability"}
    assert any("torchcam is not installed" in hint for hint in found.hints)


def test_the_plain_way_may_be_left_out(cohort: Pack, tmp_path: Path):
    wanted = MapBenchOptions(num_patches=60, plain_patches=-1, num_rounds=1)
    found = bench_map(wanted, cohort, about="x", compute=select_device("cpu"), folder=tmp_path)
    assert set(found.rates) == {"bare", "command"}
    assert found.differences == {}


def test_drawn_patients_are_as_large_as_real_ones(tmp_path: Path):
    pack = drawn_pack(tmp_path / "drawn.h5", 2_000)
    sizes = np.bincount(pack.index["patient"])
    np.testing.assert_array_equal(sizes, [994, 994, 12])
    assert 0.1 < pack.patches[np.arange(500)].std() / 255 < 0.4


def test_the_bundled_model_is_measured_by_its_name(cohort: Pack):
    bundled, name = make_checkpoint("bundled", input_size=0, pack=cohort)
    with pytest.raises(CheckpointError, match="at 96 px, not 32; leave --input-size out"):
        make_checkpoint("bundled", input_size=32, pack=cohort)
    assert bundled.fingerprint is not None
    assert name == f"the bundled {bundled.architecture} at {bundled.input.input_px} px"
    assert make_checkpoint(bundled.architecture, input_size=64, pack=cohort)[0].fingerprint is None
