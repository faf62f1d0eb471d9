from pathlib import Path

import h5py
import numpy as np
from wsi_idc.bench.loader import bench_loader
from wsi_idc.bench.prepare import bench_prepare

from wsi_idc.bench.baseline import plain_prepare
from wsi_idc.bench.fixtures import write_pngs
from wsi_idc.data.pack import Pack
from wsi_idc.runtime.device import select_device


def test_the_plain_way_packs_the_same_pixels(cohort: Pack, tmp_path: Path):
    rows = cohort.rows_of(cohort.patients[0])
    files = write_pngs(cohort, rows, tmp_path / "png")
    assert plain_prepare(files, patch_px=50, out=tmp_path / "plain.h5") == len(rows)
    with h5py.File(tmp_path / "plain.h5") as file:
        group = file[cohort.patients[0]]
        np.testing.assert_array_equal(group["patches"][:], cohort.patches[rows])
        np.testing.assert_array_equal(group["label"][:], cohort.index["label"].to_numpy()[rows])


def test_rates_and_a_number_of_workers_are_found(cohort: Pack, tmp_path: Path):
    options = {"about": "x", "num_patches": 80, "num_rounds": 1}
    found = bench_prepare(cohort, **options, folder=tmp_path)
    assert {"command", "plain"} <= set(found.rates)
    assert found.hints[0].startswith("--num-workers ")
    assert found.settings["patches a round"] <= 88


def test_batches_come_from_pack_and_files(cohort: Pack, tmp_path: Path):
    options = {"about": "x", "num_patches": 80, "num_rounds": 1, "batch_size": 16}
    found = bench_loader(cohort, **options, compute=select_device("cpu"), folder=tmp_path)
    assert {"command", "in order", "PNG, 0 workers"} <= set(found.rates)
    assert found.ratios["command / plain"] > 1
