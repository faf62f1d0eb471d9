import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile

from tests.export.maps import full_grid, small_map, stored
from tests.small_maps import write_two_slides
from wsi_idc.export.export import ExportOptions, export_maps


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_export_writes_every_format_by_default(tmp_path: Path):
    patient_map = small_map(
        full_grid(2, 2),
        [0.1, 0.9, 0.9, 0.1],
        label=np.array([0, 1, 1, 0], np.int8),
        cam=np.ones((4, 2, 2), np.float32),
        patches=np.zeros((4, 50, 50, 3), np.uint8),
    )
    path, out = stored(patient_map, tmp_path), tmp_path / "new" / "out"
    report = export_maps([path], out, ExportOptions())
    endings = "cam.ome.tif cam.png csv geojson labels.png layers.json probability.ome.tif"
    endings += " probability.png tissue.ome.tif tissue.png"
    assert names_in(out) == [f"P1.{ending}" for ending in endings.split()]
    assert sorted(file.name for file in report.written[path]) == names_in(out)
    assert report.failed == {}


def test_files_of_slides_are_in_the_folder_of_the_patient(tmp_path: Path):
    paths, out = write_two_slides(tmp_path / "maps"), tmp_path / "out"
    report = export_maps(paths, out, ExportOptions(("geojson", "csv", "png")))
    assert report.failed == {}
    assert names_in(out) == ["P1"]
    assert all(file.parent == out / "P1" for files in report.written.values() for file in files)
    ids = []
    for name in ("a", "b"):
        features = json.loads((out / "P1" / f"{name}.geojson").read_text())["features"]
        ids += [feature["id"] for feature in features]
        assert json.loads((out / "P1" / f"{name}.layers.json").read_text())["slide_name"] == name
    assert len(set(ids)) == len(ids)
    again = export_maps([*paths, paths[0].rename(tmp_path / "c.h5")], out, ExportOptions(("csv",)))
    assert list(again.written) == [paths[1], tmp_path / "c.h5"]


def test_export_without_image_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = stored(small_map([[0, 0]], [0.9]), tmp_path)
    with caplog.at_level(logging.WARNING, "wsi_idc"):
        export_maps([path], tmp_path / "out", ExportOptions(("ome-tiff", "png")))
    assert "has no image" in caplog.text
    endings = ("layers.json", "probability.ome.tif", "probability.png")
    assert names_in(tmp_path / "out") == [f"P1.{ending}" for ending in endings]


@pytest.mark.parametrize("where", [(3, 4), (0, 0), (9, 13)])
def test_export_formats_mark_the_same_square(tmp_path: Path, where: tuple[int, int]):
    """The one dark patch of white tissue is the one tile and region of a high probability."""
    cells = full_grid(10, 14)
    number = cells.tolist().index(list(where))
    patches = np.full((len(cells), 50, 50, 3), 255, np.uint8)
    patches[number] = (90, 30, 120)
    probability = np.full(len(cells), 0.1)
    probability[number] = 0.9
    patient_map = small_map(cells, probability, patches=patches)
    export_maps([stored(patient_map, tmp_path)], tmp_path, ExportOptions(("geojson", "ome-tiff")))
    tissue = tifffile.imread(tmp_path / "P1.tissue.ome.tif")
    overlay = tifffile.imread(tmp_path / "P1.probability.ome.tif")
    assert tissue.shape == overlay.shape == (500, 700, 3)
    dark = np.argwhere((tissue == (90, 30, 120)).all(axis=-1))
    (top, left), (bottom, right) = dark.min(axis=0), dark.max(axis=0) + 1
    features = json.loads((tmp_path / "P1.geojson").read_text())["features"]
    marked = [f for f in features if f["properties"]["classification"]["name"] == "IDC"]
    assert [f["properties"]["objectType"] for f in marked] == ["tile", "annotation"]
    for feature in marked:
        square = shapely.geometry.shape(feature["geometry"])
        assert square.equals(shapely.box(left, top, right, bottom))
    bright = (overlay != overlay[0 if where[0] else -1, 0 if where[1] else -1]).any(axis=-1)
    assert np.argwhere(bright).tolist() == dark.tolist()


def test_export_sets_bad_maps_aside(tmp_path: Path):
    good = stored(small_map([[0, 0]], [0.9]), tmp_path)
    (tmp_path / "bad.h5").write_text("no map")
    off = small_map([[0, 0], [0, 1], [0, 2]], [0.9] * 3, patient="off")
    off = stored(replace(off, coords=off.coords + np.array([[0], [0], [7]], np.int32)), tmp_path)
    same = stored(small_map([[0, 0]], [0.9], patient="same", class_names=("a", "a")), tmp_path)
    twin = stored(small_map([[0, 0]], [0.1]), tmp_path / "other")
    paths = [tmp_path / "none.h5", tmp_path / "bad.h5", off, same, good, twin]
    report = export_maps(paths, tmp_path / "out", ExportOptions(("csv",)))
    assert list(report.written) == [good]
    assert [reason.partition("; ")[0].partition(": ")[2] for reason in report.failed.values()] == [
        "no such file",
        "not a usable map (Unable to synchronously open file (file signature not found))",
        "the corners of the patches are not on a grid of 50 px",
        "both classes have the same name",
        f"{good} is also a map of P1",
    ]
    assert names_in(tmp_path / "out") == ["P1.csv"]


def test_export_replaces_files_of_the_same_name(tmp_path: Path):
    path, out = stored(small_map([[0, 0]], [0.9]), tmp_path), tmp_path / "out"
    export_maps([path], out, ExportOptions())
    first = {file.name: file.read_bytes() for file in out.iterdir()}
    for file in out.iterdir():
        file.write_text("old")
    export_maps([path], out, ExportOptions())
    assert {file.name: file.read_bytes() for file in out.iterdir()} == first


def test_export_reports_an_unwritable_folder(tmp_path: Path):
    path = stored(small_map([[0, 0]], [0.9]), tmp_path)
    (tmp_path / "file").touch()
    for name in ("geojson", "ome-tiff", "csv", "png"):
        report = export_maps([path], tmp_path / "file", ExportOptions((name,)))
        assert "cannot be written (" in report.failed[path]
