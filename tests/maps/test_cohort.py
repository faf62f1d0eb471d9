import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from tests.small_maps import (
    EVIL,
    PROBABILITY,
    edge_map,
    hand_map,
    write_hand_map,
    write_two_slides,
)
from wsi_idc.core.constants import SHORT_SHA
from wsi_idc.core.errors import MapError
from wsi_idc.core.files import file_version
from wsi_idc.data.artifacts import FLAGS
from wsi_idc.maps.cohort import (
    COLUMNS,
    PATIENT_COLUMNS,
    Cohort,
    cohort_row,
    patient_row,
    read_cohort,
    read_cohort_h5,
    summarize,
)
from wsi_idc.maps.map_reader import map_paths, read_map
from wsi_idc.maps.patient_map import PatientMap, SlideView


def test_row_has_the_values_of_the_map():
    uncertainty = np.array([0.1, 0.2, 0.3, 0.2, 0.2], np.float32)
    novelty = np.array([1, 1, 0.9, 0.8, 0.8], np.float32)
    flags = np.array([0, FLAGS["blur"], FLAGS["blur"] | FLAGS["pen"], 0, 0], np.uint8)
    patient_map = hand_map(
        uncertainty=uncertainty,
        novelty=novelty,
        novelty_limit=0.75,
        flags=flags,
        flag_bits=FLAGS,
        provenance={"data": "data/idc.h5"},
    )
    row = cohort_row(patient_map, threshold=0.5)
    assert row == {
        "patient": "P1",
        "source": "pack",
        "patches": 5,
        "labelled_patches": 4,
        "threshold": 0.5,
        "area_mm2": pytest.approx(0.2),
        "idc_area_mm2": pytest.approx(0.12),
        "idc_fraction": 0.6,
        "largest_region_mm2": pytest.approx(0.04),
        "mean_probability": pytest.approx(0.54),
        "mean_uncertainty": pytest.approx(0.2),
        "true_fraction": 0.5,
        "dice": 0.5,
        "auc": 0.75,
        "sensitivity": 0.5,
        "specificity": 0.5,
        "role": "test",
        "architecture": "cnn",
        "checkpoint_sha256": "0123456789ab",
        "tta": "",
        "ensemble": "",
        "slide": "",
        "mean_novelty": pytest.approx(0.9),
        "novel_fraction": 0.4,
        "caution": "unlike the training data (novelty 0.90 > 0.75)",
        "flagged": 2,
        **{f"flagged_{name}": {"blur": 2, "pen": 1}.get(name, 0) for name in FLAGS},
        "excluded_flags": "",
        "source_file": "idc.h5",
    }
    row = cohort_row(replace(patient_map, exclude_flagged=True), threshold=0.5)
    assert row["excluded_flags"] == " ".join(FLAGS)
    areas = [row[name] for name in ("area_mm2", "idc_area_mm2", "largest_region_mm2")]
    assert areas == pytest.approx([0.12, 0.08, 0.04])
    assert (row["patches"], row["idc_fraction"]) == (5, 0.6)


def test_threshold_is_the_lowest_probability_called():
    lowest = float(np.float32(PROBABILITY[4]))
    assert cohort_row(hand_map(), threshold=lowest)["idc_fraction"] == 0.6
    row = cohort_row(hand_map(), threshold=0.95)
    assert (row["idc_area_mm2"], row["largest_region_mm2"], row["sensitivity"]) == (0, 0, 0)
    assert row["specificity"] == 1
    row = cohort_row(hand_map(label=np.full(5, -1, np.int8)), threshold=0.5)
    for name in ("true_fraction", "dice", "auc", "sensitivity", "specificity", "mean_uncertainty"):
        assert np.isnan(row[name]), name  # without labels
    assert (row["labelled_patches"], row["idc_fraction"]) == (0, 0.6)


def test_row_names_views_and_members_of_the_model():
    model = {"tta": True, "ensemble": [{"sha256": "ab" * 32}, {"sha256": "cd" * 32}]}
    row = cohort_row(hand_map(model=model), threshold=0.5)
    assert row["tta"] == "true"
    assert row["ensemble"].split() == [("ab" * 32)[:SHORT_SHA], ("cd" * 32)[:SHORT_SHA]]
    assert (row["role"], row["checkpoint_sha256"]) == ("", "")
    members = [{"sha256": digit * 64, "metrics": {"auc": 1}} for digit in "ab"]
    row = cohort_row(hand_map(model={"tta": False, "ensemble": members}), threshold=0.5)
    assert (row["tta"], row["ensemble"]) == ("", f"{'a' * 12} {'b' * 12}")
    row = cohort_row(hand_map(model={"role_of_patient": "in no split"}), threshold=0.5)
    assert row["role"] == ""


def test_patches_in_the_same_cell_count_once():
    row_col = np.array([[0, 1], [0, 1], [1, 3], [2, 1], [3, 3]], np.int32)
    row = cohort_row(hand_map(row_col=row_col), threshold=0.5)
    assert row["area_mm2"] == pytest.approx(4 * 0.04)
    assert row["idc_area_mm2"] == pytest.approx(2 * 0.04)
    assert row["largest_region_mm2"] == pytest.approx(0.04)


def test_area_beyond_the_edge_of_the_slide_does_not_count():
    row = cohort_row(edge_map(), threshold=0.5)
    areas = (row["area_mm2"], row["idc_area_mm2"], row["largest_region_mm2"])
    assert areas == pytest.approx((0.075, 0.035, 0.035))
    # Cells of overlapping patches are 100 um wide and begin 50 um inside their patches.
    overlap = edge_map().cell_px // 2
    cells = np.array([(0, 0), (0, 1), (0, 2), (1, 2)], np.int32)
    patient_map = replace(edge_map(), stride_px=overlap, row_col=cells, coords=cells[:, ::-1] * 200)
    assert patient_map.fraction_on_slide.tolist() == [1, 1, 0.5, 0.5]


def test_table_of_a_folder_leaves_out_unusable_maps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for patient in ("b", "a"):
        write_hand_map(tmp_path, patient=patient)
    (tmp_path / "bad.h5").write_text("no map")
    write_hand_map(tmp_path, patient="odd", threshold=float("nan"))
    table = read_cohort(tmp_path).table()
    assert list(table.columns) == list(COLUMNS)
    assert table["patient"].tolist() == ["a", "b"]
    assert table["map"].tolist() == ["a.h5", "b.h5"]
    cohort = read_cohort(tmp_path)
    assert {path.name for path in cohort.failed} == {"bad.h5", "odd.h5"}
    assert "not a usable map" in cohort.failed[tmp_path / "bad.h5"]
    assert "threshold or temperature is out of range" in cohort.failed[tmp_path / "odd.h5"]
    assert "not a usable map" in caplog.text
    strict = read_cohort([tmp_path / "a.h5"], threshold=0.85).table()
    assert strict["idc_fraction"].tolist() == [0.2]
    empty = Cohort().table()
    assert (len(empty), list(empty.columns)) == (0, list(COLUMNS))


def test_known_maps_are_read_again_only_if_their_files_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    paths = [write_hand_map(tmp_path, patient=patient) for patient in ("a", "b")]
    known = {file_version(path): summarize(read_map(path)) for path in paths}
    expected = read_cohort(tmp_path).table()
    read: list[Path] = []

    def read_and_note(path: Path) -> PatientMap:
        read.append(path)
        return read_map(path)

    monkeypatch.setattr("wsi_idc.maps.cohort.read_map_without_cams", read_and_note)
    assert read_cohort(tmp_path, known=known).table().equals(expected)
    assert read == []
    write_hand_map(tmp_path, patient="b", threshold=0.85)
    assert read_cohort(tmp_path, known=known).table()["threshold"].tolist() == [0.5, 0.85]
    assert read == [tmp_path / "b.h5"]


def test_second_map_of_a_patient_is_refused(tmp_path: Path):
    one, two = (write_hand_map(tmp_path / name) for name in ("one", "two"))
    cohort = read_cohort([one, two])
    assert len(cohort.table()) == 1
    assert f"is also in {one}" in cohort.failed[two]


def test_patient_has_either_one_map_or_a_map_for_each_slide(tmp_path: Path):
    slides, one = write_two_slides(tmp_path / "slides"), write_hand_map(tmp_path)
    cohort = read_cohort([slides[0], one, slides[1], slides[0].parent / "none.h5"])
    assert list(cohort.rows) == ["P1/a", "P1/b"]
    assert f"patient P1 is also in {slides[0]}; give only one map" in cohort.failed[one]
    cohort = read_cohort([one, *slides])
    assert list(cohort.rows) == ["P1"]
    assert f"patient P1/b is also in {one}; give only one map" in cohort.failed[slides[1]]


def test_row_of_a_patient_has_the_sums_of_the_slides(tmp_path: Path):
    write_two_slides(tmp_path, "P2")
    write_hand_map(tmp_path, patient="P1")
    cohort = read_cohort(tmp_path)
    table = cohort.table()
    assert table["map"].tolist() == ["P1.h5", "P2/a.h5", "P2/b.h5"]
    assert table["slide"].tolist() == ["", "a", "b"]
    one, two = cohort.patients().to_dict("records")
    row = cohort.rows["P1"]
    expected = {"slides": 1, **{name: row[name] for name in PATIENT_COLUMNS if name in row}}
    assert one == pytest.approx(expected, nan_ok=True)
    assert two == {
        "patient": "P2",
        "slides": 2,
        "patches": 8,
        "labelled_patches": 7,
        "threshold": 0.5,
        "area_mm2": pytest.approx(0.32),
        "idc_area_mm2": pytest.approx(0.16),
        "idc_fraction": 0.5,
        "largest_region_mm2": row["largest_region_mm2"],
        "mean_probability": pytest.approx(0.475),
        "mean_uncertainty": pytest.approx(np.nan, nan_ok=True),
        "true_fraction": 4 / 7,
        "dice": 4 / 7,  # 2 true positives, 1 false positive, 2 false negatives
        "auc": 0.75,  # 9 of 12 pairs of patches of both slides
        "sensitivity": 0.5,
        "specificity": pytest.approx(2 / 3),
        **{name: row[name] for name in ("role", "architecture", "checkpoint_sha256")},
        **{"tta": "", "ensemble": "", "caution": "", "excluded_flags": ""},
        **dict.fromkeys(
            ("mean_novelty", "novel_fraction", "flagged", *(f"flagged_{name}" for name in FLAGS)),
            pytest.approx(np.nan, nan_ok=True),
        ),
    }
    cohort.drop("P2/a")
    assert cohort.patient_row("P2")["patches"] == 3
    mixed = patient_row(
        [row, row | {"threshold": 0.4, "architecture": "resnet18"}], [cohort.labelled["P1"]] * 2
    )
    assert np.isnan(mixed["threshold"])
    assert mixed["architecture"] == "cnn resnet18"
    mixed = patient_row([row, row | {"excluded_flags": "blur"}], [cohort.labelled["P1"]] * 2)
    assert mixed["excluded_flags"] == "mixed"


def test_cohort_file_links_the_maps_of_slides(tmp_path: Path):
    write_two_slides(tmp_path, "P2")
    paths = read_cohort(tmp_path).write(tmp_path)
    assert [path.name for path in paths] == ["cohort.csv", "cohort.h5", "patients.csv"]
    assert pd.read_csv(paths[2])["slides"].tolist() == [2]
    with h5py.File(tmp_path / "cohort.h5") as file:
        assert file["maps/P2/b"].attrs["slide_name"] == "b"
        assert file["maps/P2"].get("b", getlink=True).filename == "P2/b.h5"
    write_two_slides(tmp_path / "odd", "cohort")
    with pytest.raises(MapError, match="is the map of a patient"):
        read_cohort(tmp_path / "odd").write(tmp_path / "odd")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of two maps, one of an odd name, and their table."""
    folder = tmp_path / "maps"
    for patient in ("P1", EVIL):
        write_hand_map(folder, patient=patient, label=np.array([1, 0, 1, -1, -1], np.int8))
    read_cohort(folder).write(folder)
    return folder


def test_both_files_have_the_table(folder: Path):
    table = read_cohort(folder).table()
    pd.testing.assert_frame_equal(read_cohort_h5(folder / "cohort.h5"), table)
    csv = pd.read_csv(folder / "cohort.csv", keep_default_na=False, na_values={"auc": [""]})
    assert csv["patient"].tolist() == [EVIL, "P1"]
    assert csv["dice"].tolist() == [0.5, 0.5]
    assert not list(folder.glob(".*"))


def test_links_are_valid_from_any_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    moved = tmp_path / "elsewhere" / "maps"
    moved.parent.mkdir()
    folder.rename(moved)
    monkeypatch.chdir("/")
    with h5py.File(os.path.relpath(moved / "cohort.h5")) as file:
        assert file.attrs["format"] == "wsi-idc-cohort"
        assert (file.attrs["complete"], file.attrs["num_maps"]) == (1, 2)
        assert sorted(file["maps"]) == [EVIL, "P1"]
        assert file["maps"].get("P1", getlink=True).filename == "P1.h5"
        probability = file[f"maps/{EVIL}/probability"][:]
    np.testing.assert_array_equal(probability, np.array(PROBABILITY, np.float32))


def test_links_of_a_table_in_another_folder(folder: Path, tmp_path: Path):
    read_cohort(folder).write(tmp_path / "report")
    with h5py.File(tmp_path / "report" / "cohort.h5") as file:
        assert file["maps"].get("P1", getlink=True).filename == "../maps/P1.h5"
        assert file["maps/P1"].attrs["patient"] == "P1"


def test_table_is_not_listed_as_map_and_replaces_none(folder: Path, tmp_path: Path):
    assert [path.name for path in map_paths(folder)] == [f"{EVIL}.h5", "P1.h5"]
    read_cohort(folder).write(folder)  # again
    path = write_hand_map(tmp_path, patient="cohort")
    assert map_paths(tmp_path) == [path]
    with pytest.raises(MapError, match="is the map of a patient"):
        read_cohort(tmp_path).write(tmp_path)
    assert read_map(path).patient == "cohort"


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9])
def test_truncated_table_is_refused(folder: Path, fraction: float):
    path = folder / "cohort.h5"
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(MapError, match="not a usable cohort file"):
        read_cohort_h5(path)
    with pytest.raises(MapError, match="not a usable cohort file"):
        read_cohort_h5(folder / "P1.h5")


@pytest.mark.parametrize(
    "forge",
    [
        lambda file: file.attrs.update(num_maps=2**40),
        lambda file: file.__delitem__("table"),
        lambda file: file["table"].attrs.update(columns=["none"]),
        lambda file: file["table"].attrs.update(columns=3.5),
        lambda file: replaced(file, "table/dice", shape=(2**40,), dtype="f8", chunks=(64,)),
        lambda file: replaced(file, "table/patient", data=np.zeros((2, 2))),
        lambda file: link_to_pipe(file, "table"),
        lambda file: link_to_pipe(file, "table/patient"),
        lambda file: (file.__delitem__("table/auc"), file.create_group("table/auc")),
    ],
)
def test_forged_table_is_refused(folder: Path, forge: Callable[[h5py.File], None]):
    with h5py.File(folder / "cohort.h5", "r+") as file:
        forge(file)
    with pytest.raises(MapError, match="not a usable cohort file") as caught:
        read_cohort_h5(folder / "cohort.h5")
    assert "\n" not in str(caught.value)


def link_to_pipe(file: h5py.File, name: str) -> None:
    pipe = Path(file.filename).with_name("pipe")
    os.mkfifo(pipe)
    del file[name]
    file[name] = h5py.ExternalLink(pipe, "/")


def replaced(file: h5py.File, name: str, **dataset: object) -> None:
    del file[name]
    file.create_dataset(name, **dataset)


def test_a_slide_with_two_maps_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    thumbnail, tissue = np.zeros((4, 5, 3), np.uint8), np.ones((4, 5), bool)
    slide = SlideView("s.svs", 1.0, 1000, 800, thumbnail, tissue)
    write_hand_map(tmp_path, patient="A", slide=slide)
    write_hand_map(tmp_path, patient="B", slide=replace(slide, thumbnail=thumbnail + 1))
    read_cohort(tmp_path)
    assert caplog.messages == []
    write_hand_map(tmp_path, patient="C", slide=slide)
    read_cohort(tmp_path)
    assert caplog.messages == [
        "slide s.svs has two maps, A and C: sums count it twice; remove one map"
    ]
