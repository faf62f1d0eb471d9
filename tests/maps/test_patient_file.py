from pathlib import Path

import h5py
import pandas as pd
import pytest

from tests.small_maps import write_hand_map, write_two_slides
from wsi_idc.core.errors import BusyError, MapError
from wsi_idc.core.files import temporary_path
from wsi_idc.maps.cohort import PATIENT_COLUMNS, read_cohort
from wsi_idc.maps.map_reader import is_patient_file, map_paths, maps_of, read_map
from wsi_idc.maps.patient_file import read_patient_file, write_patient_file


def test_patient_file_links_and_sums_the_maps(tmp_path: Path):
    paths = write_two_slides(tmp_path / "maps")
    path = tmp_path / "maps" / "P1.h5"
    assert is_patient_file(path)
    assert maps_of(path) == map_paths(tmp_path / "maps") == paths
    assert maps_of(paths[0]) == [paths[0]]
    row, table = read_patient_file(path)
    cohort = read_cohort(paths)
    assert list(row) == list(PATIENT_COLUMNS)
    assert (row["patient"], row["slides"], row["patches"], row["auc"]) == ("P1", 2, 8, 0.75)
    pd.testing.assert_frame_equal(table, cohort.table())
    moved = tmp_path / "moved"
    path.parent.rename(moved)
    with h5py.File(moved / "P1.h5") as file:
        assert file.attrs["format"] == "wsi-idc-patient"
        assert file["maps"].get("b", getlink=True).filename == "P1/b.h5"
        assert file["maps/b/probability"].shape == (3,)
        assert file["maps/b"].attrs["slide_name"] == "b"


def test_same_maps_have_the_same_bytes(tmp_path: Path):
    write_two_slides(tmp_path)
    path = tmp_path / "P1.h5"
    data = path.read_bytes()
    write_patient_file(path)
    assert path.read_bytes() == data
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["P1.h5"]


def test_other_files_in_the_folder_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    paths = write_two_slides(tmp_path)
    (tmp_path / "P1" / "bad.h5").write_text("no map")
    write_hand_map(tmp_path / "other", patient="P1", slide_name="c").rename(tmp_path / "P1/d.h5")
    write_hand_map(tmp_path / "P1", patient="P2")
    write_patient_file(tmp_path / "P1.h5")
    assert read_patient_file(tmp_path / "P1.h5")[1]["slide"].tolist() == ["a", "b"]
    assert "P1/d.h5: is the map of P1/c" in caplog.text
    assert "P1/P2.h5: is the map of P2" in caplog.text
    for path in paths:
        path.unlink()
    with pytest.raises(MapError, match=r"no map in .*P1 can be used"):
        write_patient_file(tmp_path / "P1.h5")
    assert is_patient_file(tmp_path / "P1.h5")


def test_maps_are_read_while_the_file_is_locked(tmp_path: Path, monkeypatch):
    """Otherwise, a process could replace the file of a process that has read more maps."""
    write_two_slides(tmp_path)
    held = []

    def read(path: Path) -> object:
        with pytest.raises(BusyError), temporary_path(tmp_path / "P1.h5"):
            pytest.fail("the file is not locked")
        held.append(path)
        return read_map(path)

    monkeypatch.setattr("wsi_idc.maps.patient_file.read_map_without_cams", read)
    write_patient_file(tmp_path / "P1.h5")
    assert len(held) == 2


def test_patient_file_is_no_map(tmp_path: Path):
    write_two_slides(tmp_path)
    with pytest.raises(MapError, match="it links the maps of several slides; give one of these"):
        read_map(tmp_path / "P1.h5")
    with pytest.raises(MapError, match=r"not a usable file of several slides .*wsi-idc map$"):
        read_patient_file(tmp_path / "P1" / "a.h5")
    for name, value in (("auc", "text"), ("slides", [1, 2]), ("auc", float("inf"))):
        write_patient_file(tmp_path / "P1.h5")
        with h5py.File(tmp_path / "P1.h5", "r+") as file:
            file.attrs[name] = value
        with pytest.raises(MapError, match="an attribute is damaged"):
            read_patient_file(tmp_path / "P1.h5")
    write_patient_file(tmp_path / "P1.h5")
    with h5py.File(tmp_path / "P1.h5", "r+") as file:
        del file["table/patches"]
    with pytest.raises(MapError, match="not a usable file of several slides"):
        read_patient_file(tmp_path / "P1.h5")
