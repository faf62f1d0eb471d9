"""The Python interface: names, lazy imports, maps, packs, slides and predictions."""

import ast
import copy
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import wsi_idc
from tests.cli.commands import run_command
from tests.packs import make_tree
from tests.small_maps import (
    ROW_COL,
    hand_map,
    write_hand_map,
    write_two_slides,
    written,
)
from tests.small_slides import make_slides, write_slide
from wsi_idc import Map, PatientMaps
from wsi_idc.core.errors import DataError
from wsi_idc.data.pack import Pack
from wsi_idc.maps.map_reader import read_map
from wsi_idc.models.checkpoint import Checkpoint

REPOSITORY = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden/0.1.0"


def open_one(path: Path) -> Map:
    opened = wsi_idc.open_map(path)
    assert isinstance(opened, Map)
    return opened


def test_every_name_is_documented_and_can_be_completed():
    assert dir(wsi_idc) == sorted(wsi_idc.__all__) == wsi_idc.__all__
    for name in set(wsi_idc.__all__) - {"__version__"}:
        assert getattr(wsi_idc, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'opn_map'"):
        _ = wsi_idc.opn_map  # type: ignore[attr-defined]


def test_type_checkers_see_every_name():
    tree = ast.parse((REPOSITORY / "wsi_idc/__init__.py").read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and not node.orelse and isinstance(node.test, ast.Name)
    )
    imported = [alias.name for node in block.body for alias in node.names]  # type: ignore[attr-defined]
    assert sorted([*imported, "__version__"]) == wsi_idc.__all__


def test_imports_are_late(tmp_path: Path):
    code = """
import sys
import wsi_idc
assert sys.modules.keys().isdisjoint(["numpy", "h5py", "torch", "wsi_idc.api"])
opened = wsi_idc.open_map(sys.argv[1])
assert len(opened.to_dataframe()) == 5
opened.plot()
assert sys.modules.keys().isdisjoint(["torch", "matplotlib.pyplot", "anndata"])
"""
    path = write_hand_map(tmp_path)
    subprocess.run([sys.executable, "-c", code, path], check=True, cwd=REPOSITORY)


def test_a_map_has_the_content_of_its_file(tmp_path: Path):
    path = write_hand_map(tmp_path)
    opened, read = open_one(path), read_map(path)
    for name in ("coords", "row_col", "probability", "label", "logit", "cam"):
        np.testing.assert_array_equal(getattr(opened, name), getattr(read, name))
    np.testing.assert_array_equal(opened.probability_grid(), read.probability_grid())
    assert (opened.path, opened.patient, opened.mpp) == (path, "P1", 4.0)
    assert opened.slides == {"P1": opened}
    assert repr(opened) == f"<Map of P1: 5 patches, 60.0% called IDC, {path}>"
    assert pickle.loads(pickle.dumps(opened)).patient == "P1"


def test_patches_are_read_from_the_picture(tmp_path: Path):
    opened = open_one(write_hand_map(tmp_path))
    pixels = hand_map().patches
    np.testing.assert_array_equal(opened.read_patches(), pixels)
    np.testing.assert_array_equal(opened.read_patches([4, 0]), pixels[[4, 0]])
    np.testing.assert_array_equal(opened.read_patches(opened.label == 0), pixels[[1, 3]])
    np.testing.assert_array_equal(opened.read_patches(2), pixels[2:3])
    image = opened.read_image()
    assert image is not None
    np.testing.assert_array_equal(image[:50, 50:100], pixels[0])  # row 0, col 1


def test_only_the_middle_of_overlapping_patches_is_read(tmp_path: Path):
    opened = open_one(written(tmp_path, stride_px=6))
    assert opened.read_patches().shape == (4, 6, 6, 3)
    assert opened.read_patches()[:, 0, 0, 0].tolist() == [40, 100, 160, 220]


def test_the_table_of_a_map(tmp_path: Path):
    flags = {"flags": np.array([0, 1, 2, 3, 0], np.uint8), "flag_bits": {"blur": 1, "pen": 2}}
    made = write_hand_map(tmp_path, provenance={"data": "data/idc.h5"}, **flags)
    table = open_one(made).to_dataframe()
    columns = ["row", "col", "x", "y", "probability", "label", "flag_blur", "flag_pen"]
    assert list(table) == [*columns, "cam_mean", "cam_max", "flags", "source_file"]
    assert set(table["source_file"]) == {"idc.h5"}
    assert list(zip(table["row"], table["col"], strict=True)) == list(ROW_COL)
    assert table["x"].tolist() == [50, 100, 150, 50, 150]
    assert table["y"].tolist() == [0, 50, 50, 100, 150]
    assert table["label"].tolist() == [1, 0, 1, 0, -1]
    assert table["flag_pen"].tolist() == [False, False, True, True, False]


def test_several_slides_of_a_patient(tmp_path: Path):
    write_two_slides(tmp_path)
    (tmp_path / "P1/other.h5").write_text("no map")
    opened = wsi_idc.open_map(tmp_path / "P1.h5")
    assert isinstance(opened, PatientMaps)
    assert {name: len(slide.label) for name, slide in opened.slides.items()} == {"a": 5, "b": 3}
    assert (opened.patient, opened.summary["patches"]) == ("P1", 8)
    assert repr(opened) == f"<PatientMaps of P1: a, b, {tmp_path / 'P1.h5'}>"
    table = opened.to_dataframe()
    assert table["slide"].tolist() == ["a"] * 5 + ["b"] * 3
    assert table.index.tolist() == list(range(8))
    one = opened.slides["b"].to_dataframe()
    pd.testing.assert_frame_equal(table[5:].drop(columns="slide").reset_index(drop=True), one)
    with pytest.raises(AttributeError, match="no attribute 'probability'; the attribute slides"):
        _ = opened.probability
    assert copy.copy(opened).slides == opened.slides
    texts = [text.get_text() for text in opened.plot(dpi=40).texts]
    assert texts[:2] == ["Patient P1: Probability over tissue", "2 slides"]
    assert texts[3:] == ["a", "b"]
    with pytest.raises(wsi_idc.WsiIdcError, match="give one of overlay, contours, cam"):
        opened.plot("panels")


@pytest.mark.parametrize(("name", "num"), [("S0001", 8), ("slide", 30)])
def test_maps_of_the_first_version_are_opened(name: str, num: int):
    opened = open_one(GOLDEN / f"maps/{name}.h5")
    table = opened.to_dataframe()
    assert len(table) == num
    assert ("tissue" in table) == (name == "slide")
    assert opened.plot(dpi=40).texts[0].get_text() == f"Patient {name}"


def test_a_plot_is_shown_by_notebooks(tmp_path: Path):
    figure = open_one(write_hand_map(tmp_path)).plot("overlay", dpi=200)
    figure.savefig(tmp_path / "map.png")
    with (
        Image.open(tmp_path / "map.png") as saved,
        Image.open(BytesIO(figure._repr_png_())) as shown,
    ):
        width = int(figure.get_figwidth() * 200)
        assert saved.width == shown.width == width


def test_a_pack_and_a_patch_tree_are_opened(pack: Pack, tmp_path: Path):
    opened = wsi_idc.open_pack(str(pack.path))
    assert isinstance(opened, wsi_idc.Pack)
    assert opened.patients == ["10253", "10254", "9"]
    np.testing.assert_array_equal(opened.patches, pack.patches)
    assert len(wsi_idc.open_pack(make_tree(tmp_path / "other"))) == len(pack)


def test_slides_become_maps_as_on_the_command_line(
    trained: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint, out = trained.source, tmp_path / "maps"
    assert checkpoint is not None
    slide = write_slide(tmp_path / "scan.tif", {(0, 0): 1, (1, 1): 2}, rows=2, cols=2)
    (path,) = wsi_idc.map_slides(slide, out=out, checkpoint=checkpoint.parent, device="cpu")
    assert path == out / "scan.h5"
    opened = open_one(path)
    assert (opened.patient, opened.row_col.tolist()) == ("scan", [[0, 0], [1, 1]])
    words = ["--out", out, "--checkpoint", checkpoint, "--device", "cpu", "--json"]
    result = run_command(capsys, "map", slide, *words)
    assert json.loads(result.out)["kept"] == {"scan": str(path)}
    before = path.stat().st_mtime_ns
    assert wsi_idc.map_slides([slide], out=out, checkpoint=checkpoint, device="cpu") == [path]
    assert path.stat().st_mtime_ns == before
    probability, cams = wsi_idc.predict(opened.read_patches(), cams=True, checkpoint=checkpoint)
    main = opened.probability if opened.unsmoothed is None else opened.unsmoothed
    np.testing.assert_allclose(probability, main, rtol=1e-5)
    np.testing.assert_allclose(cams, opened.cam, rtol=1e-4, atol=1e-5)
    lost = [tmp_path / "lost.svs", slide]
    with pytest.raises(wsi_idc.WsiIdcError, match=r"1 of 2 maps were not made: lost: .*lost\.svs"):
        wsi_idc.map_slides(lost, out=out, checkpoint=checkpoint)
    with pytest.raises(wsi_idc.WsiIdcError, match="0 um/px is impossible"):
        wsi_idc.map_slides(slide, out=out, checkpoint=checkpoint, mpp=0)


def test_a_manifest_with_several_slides_of_a_patient(trained: Checkpoint, tmp_path: Path):
    manifest = make_slides(tmp_path) / "slides/slides.csv"
    paths = wsi_idc.map_slides(manifest, out=tmp_path / "maps", checkpoint=trained.source)
    assert paths == [tmp_path / "maps" / name for name in ("P/one.h5", "P/two.h5", "Q.h5")]
    assert list(wsi_idc.open_map(tmp_path / "maps/P.h5").slides) == ["one", "two"]


def test_predictions_of_patches(cohort: Pack, trained: Checkpoint):
    rows = cohort.rows_of(cohort.patients[0])
    patches = cohort.patches[rows[0] : rows[-1] + 1]  # read-only
    probability = wsi_idc.predict(patches, checkpoint=trained.source, batch_size=16)
    assert probability.dtype == np.float32
    assert probability.shape == (len(rows),)
    logit = trained.build()(torch.from_numpy(patches.copy())).detach()
    expected = (logit / trained.temperature).softmax(dim=1)[:, 1].numpy()
    np.testing.assert_allclose(probability, expected, rtol=1e-4, atol=1e-6)
    probability, cams = wsi_idc.predict(patches, cams=True, checkpoint=trained.source)
    empty, no_cams = wsi_idc.predict(patches[:0], cams=True, checkpoint=trained.source)
    assert (empty.shape, no_cams.shape) == ((0,), (0, *cams.shape[1:]))


def test_threads_wait_for_each_other(cohort: Pack, trained: Checkpoint):
    predict = partial(wsi_idc.predict, checkpoint=trained.source)
    batches = [cohort.patches[start : start + 16] for start in range(0, 64, 16)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(predict, batches))
    for patches, result in zip(batches, results, strict=True):
        np.testing.assert_allclose(result, predict(patches), rtol=1e-5, atol=1e-6)


def test_a_batch_has_at_least_one_patch():
    patches = np.zeros((1, 50, 50, 3), np.uint8)
    with pytest.raises(DataError, match="batch_size is 0; it must be at least 1"):
        wsi_idc.predict(patches, batch_size=0)


def test_the_bundled_model_is_the_default():
    patches = np.full((1, 50, 50, 3), 240, np.uint8)
    default = wsi_idc.predict(patches)
    np.testing.assert_array_equal(default, wsi_idc.predict(patches, checkpoint="bundled"))
    assert 0 < default[0] < 0.5  # glass


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        (np.zeros((2, 50, 50, 3)), "patches of type float64 and shape"),
        (np.zeros((50, 50, 3), np.uint8), "give patches of type uint8 and shape"),
        (np.zeros((2, 64, 64, 3), np.uint8), "do not fit the model; give patches of 50 px at 4 um"),
        (np.zeros((2, 50, 50, 4), np.uint8), "do not fit the model"),
    ],
)
def test_patches_that_do_not_fit_are_refused(patches: np.ndarray, message: str):
    with pytest.raises(wsi_idc.WsiIdcError, match=message):
        wsi_idc.predict(patches)


def test_errors_are_one_clear_line(tmp_path: Path):
    no_picture = open_one(written(tmp_path, patches=None, cam=None))
    write_two_slides(tmp_path / "moved")
    (tmp_path / "moved/P1.h5").rename(tmp_path / "P2.h5")
    calls = {
        "no such file; make it with wsi-idc map": lambda: wsi_idc.open_map("lost.h5"),
        "is a folder; give a map file": lambda: wsi_idc.open_map(tmp_path),
        "P2/a.h5: no such file": lambda: wsi_idc.open_map(tmp_path / "P2.h5"),
        "no such file; make one with wsi-idc prepare": lambda: wsi_idc.open_pack("lost.h5"),
        "has no picture": no_picture.read_patches,
        "view 'heatmap' is not one of panels, ": lambda: no_picture.plot("heatmap"),
        "dpi must be from 30 to 1200, not 0": lambda: no_picture.plot("overlay", dpi=0),
        "has no CAM": lambda: no_picture.plot("cam"),
        "lost: no such file; give a finished run": lambda: wsi_idc.predict([], checkpoint="lost"),
    }
    for message, call in calls.items():
        with pytest.raises(wsi_idc.WsiIdcError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
