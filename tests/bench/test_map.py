from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_idc.bench import fixtures
from wsi_idc.bench import map as map_module
from wsi_idc.bench.map import bench_map
from wsi_idc.bench.timing import BenchmarkResult
from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import make_split
from wsi_idc.runtime.device import select_device

pytestmark = pytest.mark.usefixtures("no_workers")


@pytest.fixture(autouse=True)
def _one_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_module, "best_batch_size", lambda *_: 32)


def measure(pack: Pack, folder: Path, **options: Any) -> BenchmarkResult:
    sizes = {"num_patches": 60, "plain_patches": 20, "num_rounds": 1, **options}
    data = fixtures.BenchmarkData(pack, "x", folder)
    return bench_map(data, device_config=select_device("cpu"), **sizes)


@pytest.mark.parametrize(
    ("model", "size"), [("cnn-bn", 0), ("resnet18", 64), ("timm:test_efficientnet", 128)]
)
def test_the_plain_script_gets_the_same_results(
    cohort: Pack, tmp_path: Path, model: str, size: int
):
    if model.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is not installed")
    result = measure(cohort, tmp_path, model=model, input_size=size)
    assert result.differences["probability"] < 1e-5
    assert result.differences["CAM over its maximum"] < 1e-4
    assert set(result.rates) == {"bare", "command", "plain"}
    assert set(result.ratios) == {"command / bare", "command / plain"}
    assert result.settings["network"] == f"{model} at {size or 50} px"


def test_the_plain_script_can_be_left_out(cohort: Pack, tmp_path: Path):
    result = measure(cohort, tmp_path, plain_patches=-1)
    assert (set(result.rates), result.differences) == ({"bare", "command"}, {})


def test_a_difference_is_reported(cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = map_module.baseline_map

    def brighter(*args, **kwargs):
        logit, cam = original(*args, **kwargs)
        return logit + np.float32([0, 1]), cam * 2

    monkeypatch.setattr(map_module, "baseline_map", brighter)
    result = measure(cohort, tmp_path)
    assert result.differences["probability"] > 0.01
    assert result.differences["CAM over its maximum"] == pytest.approx(0.5, abs=1e-3)


def test_drawn_patients_have_the_size_of_real_ones(tmp_path: Path):
    pack = fixtures.drawn_pack(tmp_path / "drawn.h5", 2_000)
    np.testing.assert_array_equal(np.bincount(pack.index["patient"]), [994, 994, 12])
    assert 0.1 < pack.patches[np.arange(500)].std() / 255 < 0.4


@pytest.mark.parametrize("num_patches", [500, 1500, 9940, 20_000])
def test_synthetic_patches_can_be_split(tmp_path: Path, num_patches: int):
    data = fixtures.open_benchmark_data(None, synthetic=num_patches, folder=tmp_path)
    assert len(data.pack) == num_patches
    assert data.about.endswith(f"of {max(10, -(-num_patches // 994))} patients")
    assert len(make_split(data.pack).patients("val")) >= 1


def test_the_bundled_model_can_be_measured(cohort: Pack):
    bundled, name = fixtures.make_checkpoint("bundled", input_size=0, pack=cohort)
    with pytest.raises(CheckpointError, match="of 96 px, not 32; leave out --input-size"):
        fixtures.make_checkpoint("bundled", input_size=32, pack=cohort)
    assert bundled.fingerprint is not None
    assert name == f"the bundled {bundled.architecture} at {bundled.input.input_px} px"
    other, _ = fixtures.make_checkpoint(bundled.architecture, input_size=64, pack=cohort)
    assert other.fingerprint is None
