"""Tests of maps that remain after the slides were grouped into other patients."""

from pathlib import Path

import pytest

from tests.small_maps import small_map
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.map_writer import write_map
from wsi_idc.maps.patient_file import write_patient_file
from wsi_idc.maps.regrouped import find_regrouped


def write(folder: Path, name: str, *, data: str = "idc.h5") -> Path:
    """Write a small map of the name PATIENT or PATIENT/SLIDE."""
    patient, _, slide = name.partition("/")
    path = map_path(folder, name)
    write_map(path, small_map(patient=patient, slide_name=slide, provenance={"data": data}))
    if slide:
        write_patient_file(map_path(folder, patient))
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["A/S1", "A/S2", "A/S3"], ["A/S1", "A/S2", "B"]),  # S3 is now the slide of B
        (["A/S1", "A/S2"], ["B/S1", "B/S2"]),
        (["S1", "S2"], ["A/S1", "A/S2"]),
        (["A/S1", "A/S2"], ["S1", "S2"]),
    ],
)
def test_maps_of_an_earlier_grouping_are_found(tmp_path: Path, old: list[str], new: list[str]):
    other = [write(tmp_path, "other"), write(tmp_path, "others/S8"), write(tmp_path, "others/S9")]
    before = {name: write(tmp_path, name) for name in old}
    for name in new:
        write(tmp_path, name)
    stale = [before[name] for name in old if name not in new]
    assert find_regrouped(tmp_path, new) == sorted(stale)
    assert not set(stale) & set(other)


def test_a_slide_of_another_patient_is_found_by_its_file(tmp_path: Path):
    slides = [tmp_path / "S1.svs", tmp_path / "S2.svs"]
    old = write(tmp_path, "A", data=str(slides[0]))
    write(tmp_path, "B", data=str(slides[0]))
    write(tmp_path, "C", data=str(tmp_path / "elsewhere.svs"))
    assert find_regrouped(tmp_path, ["B"], slides) == [old]


def test_pictures_beside_a_map_are_named(tmp_path: Path):
    old = write(tmp_path, "A/S1")
    for name in ("S1.png", "S1-overlay.pdf", "S10.png", "S1.txt"):
        (old.parent / name).touch()
    write(tmp_path, "B/S1")
    names = [path.name for path in find_regrouped(tmp_path, ["B/S1", "B/S2"])]
    assert names == ["S1.h5", "S1-overlay.pdf", "S1.png"]
