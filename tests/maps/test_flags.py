"""Quality flags from the pixels to the numbers of a cohort."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from tests.data.test_artifacts import tissue
from tests.packs import Cell, make_pack
from tests.slides.tiffs import write_tiff
from wsi_idc.core.errors import MapError
from wsi_idc.data.artifacts import BLUR, FLAGS, GLASS, PEN
from wsi_idc.data.patch_flags import can_flag, patch_flags
from wsi_idc.export.csv_table import patch_table
from wsi_idc.export.layers import layer_pictures
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.cohort import read_cohort, write_cohort
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.from_slides import SlideSource
from wsi_idc.maps.layers import flags_in_words, layers_of
from wsi_idc.maps.map_reader import exclude_flagged, read_map
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.render.panels import PanelInput, flags_panel
from wsi_idc.render.render import figure_of
from wsi_idc.report.layers import page_layers
from wsi_idc.runtime.device import select_device
from wsi_idc.slides.manifest import ManifestRow
from wsi_idc.slides.tiling import SlideSettings
from wsi_idc.view.layers import map_layers

EXPECTED = [0, BLUR, PEN, GLASS]
CELL_MM2 = 0.04
Build = Callable[..., Path]


def four_patches() -> NDArray[np.uint8]:
    """Return a clean, a blurred and a penned patch, and a patch of glass, shape (4, 50, 50, 3)."""
    patches = tissue(4)
    patches[1] = cv2.GaussianBlur(patches[1], (0, 0), 3)
    ink = np.array([30, 120, 80])
    patches[2, :, :30] = 0.25 * patches[2, :, :30] + 0.75 * ink
    patches[3] = 240
    return patches


@pytest.fixture
def build(trained: Checkpoint, tmp_path: Path) -> Build:
    """Return a function that maps the four patches of a pack, all called IDC, and a slide."""
    # The calls do not depend on the network.
    checkpoint = replace(trained, threshold=0.0)
    patches = four_patches()
    cells = [Cell("A", 0, col, pixels=patch) for col, patch in enumerate(patches)]
    pack = make_pack(tmp_path / "pack.h5", cells)
    strip = np.concatenate(list(patches), axis=1).repeat(4, axis=0).repeat(4, axis=1)
    slide = ManifestRow(write_tiff(tmp_path / "B.tif", strip, mpp=1.0), "B", None)

    def build_maps(name: str, **options: bool) -> Path:
        out = tmp_path / name
        builder = MapBuilder(Predictor((checkpoint,)), select_device("cpu"), out, **options)
        for source in (PackSource(pack, ["A"]), SlideSource([slide], SlideSettings(min_tissue=0))):
            report = builder.build(source)
            assert not report.failed
        return out

    return build_maps


def test_map_has_the_flags_of_every_patch(build: Build):
    folder = build("maps")
    for name in "AB":
        with h5py.File(folder / f"{name}.h5") as file:
            assert file["flags"].dtype == np.uint8
            assert file["flags"][:].tolist() == EXPECTED
            assert file["map/flags"][:].tolist() == [EXPECTED]
            assert file["flags"].attrs["flag_meanings"] == " ".join(FLAGS)
            assert file["flags"].attrs["flag_masks"].tolist() == list(FLAGS.values())
            assert "flags" in file["map"].attrs["auxiliary_signals"]
        patient_map = read_map(folder / f"{name}.h5")
        assert patient_map.flags is not None
        assert patient_map.flags.tolist() == EXPECTED
        assert patient_map.flag_bits == FLAGS
        words = flags_in_words(patient_map.flag_counts(), are_excluded=False)
        assert words == "1 blur, 1 pen, 1 glass"


def test_tables_count_flags_and_areas_leave_out_flagged_patches(build: Build, tmp_path: Path):
    all_patches, without = build("all"), build("without", exclude_flagged=True)
    for folder, num, names in ((all_patches, 4, ""), (without, 1, " ".join(FLAGS))):
        assert write_cohort(folder) is not None
        for name in ("cohort.csv", "patients.csv"):
            table = pd.read_csv(folder / name, keep_default_na=False)
            assert table["flagged"].tolist() == [3, 3]
            assert table["flagged_blur"].tolist() == [1, 1]
            assert table["flagged_pen"].tolist() == [1, 1]
            assert table["flagged_glass"].tolist() == [1, 1]
            assert table["excluded_flags"].tolist() == [names] * 2
            for name in ("area_mm2", "idc_area_mm2", "largest_region_mm2"):
                assert table[name].to_numpy() == pytest.approx(num * CELL_MM2), name
            assert table["idc_fraction"].tolist() == [1, 1]  # fractions are of all patches
        maps = [read_map(folder / f"{name}.h5") for name in "AB"]
        assert [one.exclude_flagged for one in maps] == [bool(names)] * 2
        assert [len(one.probability) for one in maps] == [4, 4]
        assert [one.called_grid(0).sum() for one in maps] == [num] * 2
    # The setting can also be chosen for a map that was made without it.
    path = all_patches / "A.h5"
    assert exclude_flagged(path, read_map(path)).is_counted.tolist() == [True, False, False, False]
    assert read_map(path).is_counted.all()


def test_every_output_has_the_layer(build: Build, tmp_path: Path):
    path = build("maps") / "A.h5"
    patient_map = read_map(path)
    (layer,) = [layer for layer in layers_of(patient_map) if layer.name == "flags"]
    assert layer.values is not None
    names = list(FLAGS)
    shown = [names.index(name) + 1 for name in ("blur", "pen", "glass")]
    assert layer.values.tolist() == [0, *shown]
    texts = [layer.legend_texts()[number] for number in shown]
    assert texts == ["blur (1)", "pen (1)", "glass (1)"]
    (page,) = [
        layer for layer in page_layers(patient_map, has_tissue=True) if layer.name == "flags"
    ]
    assert [text for _, text in page.keys] == texts
    record = map_layers(path).record
    assert record["flagBits"] == FLAGS
    assert "flags" in record["columns"]
    (viewed,) = [layer for layer in record["layers"] if layer["name"] == "flags"]
    assert {text for _, text in viewed["keys"]} >= set(texts)
    titles = {text.get_text() for text in figure_of(path, view="quality").texts}
    assert {"Tissue", "Flags"} <= titles
    tissue_px = np.zeros((1, 4, 3), np.uint8)
    panel = flags_panel(PanelInput(patient_map, tissue_px, False, 1, 0.5))
    assert [entry.name for entry in panel.legend] == ["no flag (1)", *texts]
    assert len({tuple(color) for color in panel.picture[0].tolist()}) == 4
    (picture,) = [p for p in layer_pictures(patient_map, None) if p.name == "flags"]
    row = picture.paint_row(0, 1)[0]
    assert row[:, 3].tolist() == [0, 255, 255, 255]
    by_name = {one["name"]: one["colour"] for one in picture.scale["classes"]}
    assert row[1:, :3].tolist() == [by_name[name] for name in ("blur", "pen", "glass")]
    assert patch_table(patient_map)["flag_pen"].tolist() == [0, 0, 1, 0]


def test_older_maps_have_no_flags(build: Build):
    folder = build("maps")
    path = folder / "A.h5"
    with h5py.File(path, "a") as file:
        del file["flags"], file["map/flags"]
    patient_map = read_map(path)
    assert (patient_map.flags, patient_map.flag_counts()) == (None, {})
    assert "unknown" in flags_in_words({}, are_excluded=False)
    assert "flags" not in [layer.name for layer in layers_of(patient_map)]
    row = read_cohort([path]).rows["A"]
    assert np.isnan(row["flagged"])
    assert row["excluded_flags"] == ""
    with pytest.raises(MapError, match="has no quality flags; make it again"):
        exclude_flagged(path, patient_map)


@pytest.mark.parametrize(
    ("masks", "meanings"),
    [([1, 2, 4], "blur pen"), ([1, 3], "blur pen"), ([1, 1], "blur pen"), ([1], "<b>")],
)
def test_damaged_names_of_flags_are_refused(build: Build, masks: list[int], meanings: str):
    path = build("maps") / "A.h5"
    with h5py.File(path, "a") as file:
        file["flags"].attrs.update({"flag_masks": masks, "flag_meanings": meanings})
    with pytest.raises(MapError, match="not a usable map"):
        read_map(path)


def test_patches_of_other_resolutions_are_judged_at_4_um_per_px():
    fine = four_patches().repeat(4, axis=1).repeat(4, axis=2)
    assert patch_flags(fine, mpp=1.0).tolist() == EXPECTED
    assert patch_flags(four_patches(), mpp=4.2).tolist() == EXPECTED
    # Coarser patches are not enlarged, so nothing is known about their focus.
    assert patch_flags(four_patches(), mpp=8.0).tolist() == [0, 0, PEN, GLASS]
    assert patch_flags(four_patches()[:0], mpp=4.0).shape == (0,)
    assert can_flag(64, mpp=1.0)
    assert not can_flag(60, mpp=1.0)
    assert not can_flag(15, mpp=4.0)
