"""The scripts in benchmarks/, at a small size."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.slides.tiffs import noise, write_tiff
from wsi_idc.bench.fixtures import BenchmarkData, write_pngs
from wsi_idc.bench.forward_only import BareForward
from wsi_idc.bench.timing import BenchmarkResult
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predictor import Predictor
from wsi_idc.inference.probability import idc_probability
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_slides import SlideSource
from wsi_idc.maps.map_reader import read_map
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import select_device
from wsi_idc.slides.tiling import SlideSettings

SMALL = {"num_patches": 80, "num_rounds": 1}


@pytest.fixture(autouse=True)
def _scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    for script in (Path(__file__).parents[2] / "benchmarks").glob("*.py"):
        monkeypatch.delitem(sys.modules, script.stem, raising=False)


def test_prepare_measures_workers_and_packs_the_same_pixels(cohort: Pack, tmp_path: Path):
    import prepare

    result = prepare.bench_prepare(BenchmarkData(cohort, "x", tmp_path), **SMALL)
    assert {"command", "plain"} <= set(result.rates)
    assert result.hints[0].startswith("--num-workers ")
    assert result.settings["patches a round"] <= 88
    rows = cohort.rows_of(cohort.patients[0])
    files = write_pngs(cohort, rows, tmp_path / "other")
    assert prepare.baseline_prepare(files, patch_px=50, out=tmp_path / "plain.h5") == len(rows)
    with h5py.File(tmp_path / "plain.h5") as file:
        group = file[cohort.patients[0]]
        np.testing.assert_array_equal(group["patches"][:], cohort.patches[rows])
        np.testing.assert_array_equal(group["label"][:], cohort.index["label"].to_numpy()[rows])


@pytest.mark.usefixtures("no_workers")
def test_loader_measures_pack_and_files(
    cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import loader

    from wsi_idc.bench import baseline

    monkeypatch.setattr(loader, "worker_options", baseline.worker_options)
    data, device_config = BenchmarkData(cohort, "x", tmp_path), select_device("cpu")
    result = loader.bench_loader(data, **SMALL, batch_size=16, device_config=device_config)
    assert {"command", "in order", "PNG, 0 workers"} <= set(result.rates)
    assert result.ratios["command / plain"] > 1


def test_map_stages_measures_each_stage(cohort: Pack, trained: Checkpoint, tmp_path: Path):
    import map_stages

    device_config = select_device("cpu")
    bare = BareForward(trained, cohort.patches[np.arange(16)], device_config)
    builder = MapBuilder(Predictor((trained,)), device_config, tmp_path)
    patients = cohort.patients[:2]
    times = map_stages.measure_stages(bare, cohort, builder, patients, num_rounds=1)
    assert set(times) == {"read", "copy", "resize", "forward", "CAM", "write"}
    assert len(list(tmp_path.glob("*.h5"))) == 2


def test_a_result_is_a_row_of_the_table():
    import all as all_module

    rates, ratios = {"command": 1163.4}, {"command / bare": 0.881, "command / plain": 3.74}
    differences = {"probability": 2e-7}
    result = BenchmarkResult("map", {"network": "cnn"}, rates, ratios, differences=differences)
    assert all_module.markdown_row(result) == (
        "| map | cnn | 1,163 | 0.88 | 3.7 | probability 2e-07 |"
    )


def test_tiles_measures_a_server(tmp_path: Path):
    import tiles

    slide = write_tiff(tmp_path / "s.tif", noise(600, 900), mpp=1)
    times = tiles.bench_tiles(slide, num_tiles=12, num_clients=3)
    assert 0 < times.median_ms <= times.percentile_95_ms
    assert times.peak_mb is None or times.peak_mb > 20


def test_regions_of_a_slide_of_noise_are_novel(trained: Checkpoint, cohort: Pack, tmp_path: Path):
    import novelty

    predictor, device_config = Predictor((trained,)), select_device("cpu")
    means, limits = novelty.novelty_of_pack(predictor, cohort, device_config)
    assert len(means) == len(limits) == len(trained.patients("test"))
    write_tiff(tmp_path / "s.tif", noise(200, 150), mpp=4)
    means, limits = novelty.novelty_of_slide(
        predictor, tmp_path / "s.tif", device_config, region_cells=2
    )
    assert means.min() > 0.99
    assert len(means) == len(limits)


def test_artifacts_are_drawn_on_a_pack(cohort: Pack, capsys, monkeypatch: pytest.MonkeyPatch):
    import artifacts

    arguments = ["--data", str(cohort.path), "--rounds", "1", "--patients", "1"]
    monkeypatch.setattr(sys, "argv", ["artifacts.py", *arguments])
    artifacts.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "%" in line]
    found = {row[0].removeprefix("| "): row[2:] for row in rows if len(row) == 4 and "," in row[0]}
    assert set(found) >= {f"{ink} pen, opaque" for ink in artifacts.INKS}
    flags = [row[0].removeprefix("| ") for row in rows]
    assert flags[-5:] == ["blur", "pen", "fold", "glass", "any"]


def test_layers_of_a_fold_need_a_patch_each():
    import artifacts

    picture = np.full((500, 500, 3), 150, np.uint8)
    has_patch = np.zeros((500, 500), np.uint8)
    has_patch[:, :250] = 255
    drawn = artifacts.draw(np.random.default_rng(1), picture, has_patch)
    masks = {name: (image, mask) for name, _, image, mask in drawn}
    image, mask = masks["fold of 3 layers"]
    assert mask.any()
    assert not mask[:, 250:].any()
    # Optical densities of three layers add up.
    assert np.median(image[mask > 0]) == int(256 * (151 / 256) ** 3 - 1)
    assert (masks["fold of 2 layers"][1] >= mask).all()


def test_programs_are_compared_on_the_same_patches(trained: Checkpoint, tmp_path: Path):
    import tiatoolbox_predictor

    slide = write_tiff(tmp_path / "s.tif", noise(600, 900), mpp=1)
    mask = tmp_path / "mask.png"
    assert tiatoolbox_predictor.write_mask(mask, slide, trained.input, num_patches=0) == 15
    assert tiatoolbox_predictor.write_mask(mask, slide, trained.input, num_patches=7) == 7
    builder = MapBuilder(Predictor((trained,)), select_device("cpu", "fp32"), tmp_path / "maps")
    source = SlideSource.from_files([slide], None, SlideSettings(mask=mask))
    assert builder.build(source).patches == {"s": 7}
    patient_map = read_map(tmp_path / "maps" / "s.h5")
    assert patient_map.coords[-1].tolist() == [200, 200]
    probability = idc_probability(patient_map.logit, temperature=1.0)
    other = {"corners_px": patient_map.coords[::-1] // 4, "probability": probability[::-1] - 0.25}
    difference = tiatoolbox_predictor.largest_difference(tmp_path / "maps" / "s.h5", other)
    assert difference == pytest.approx(0.25)
    other["corners_px"] = other["corners_px"] + 1
    with pytest.raises(SystemExit, match="different patches"):
        tiatoolbox_predictor.largest_difference(tmp_path / "maps" / "s.h5", other)


def test_memory_of_a_process_includes_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import tiatoolbox_predictor

    monkeypatch.setattr(tiatoolbox_predictor, "_SAMPLE_SECONDS", 0.2)
    child = "import time; block = b'x' * 10**8; time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    usage = tiatoolbox_predictor.measure([sys.executable, "-c", parent], tmp_path / "log.txt")
    assert usage.seconds > 1
    assert usage.cpu_seconds > 0
    assert usage.peak_mb > 100 or not Path("/proc/self/smaps_rollup").exists()


def test_cost_of_novelty_is_measured(cohort: Pack, trained: Checkpoint, tmp_path: Path):
    import novelty_cost

    builder = MapBuilder(Predictor((trained,)), select_device("cpu"), tmp_path / "maps")
    patients = cohort.patients[:2]
    rates, costs = novelty_cost.measure_cost(builder, cohort, patients, num_rounds=1)
    assert set(rates) == {"with novelty", "without novelty"}
    assert min(rates.values()) > 0
    # One round has one ratio.
    expected = rates["without novelty"] / rates["with novelty"] - 1
    assert costs["duration"] == pytest.approx(expected)
    assert costs["CPU time"] > -1
