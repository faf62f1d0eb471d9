import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.packs import Cell, block, flat, make_pack, pixels_of
from wsi_idc.data.pack import Pack
from wsi_idc.data.patch_store import FolderStore
from wsi_idc.explore.tables import describe

CHANNELS = ("red", "green", "blue")


def assert_channels(row: Any, pack: Pack, rows: Any) -> None:
    """Assert that a row of a table has the statistics of some patches without their padding."""
    sizes = pack.index.loc[rows, ["height", "width"]].to_numpy()
    patches = zip(pack.patches[rows], sizes, strict=True)
    pixels = np.concatenate([patch[:h, :w].reshape(-1, 3) for patch, (h, w) in patches]) / 255
    assert row["patches"] == len(rows)
    values = [row[f"{statistic}_{name}"] for statistic in ("mean", "std") for name in CHANNELS]
    np.testing.assert_allclose(values, [*pixels.mean(axis=0), *pixels.std(axis=0)], rtol=1e-9)


def test_tables_of_a_cohort(cohort: Pack):
    description = describe(cohort)
    labels = cohort.index["label"].to_numpy()
    names = np.array(cohort.info.class_names)
    for row in description.patients.to_dict("records"):
        rows = np.flatnonzero(cohort.patient_of == row["patient"])
        counts = [(labels[rows] == label).sum() for label in (0, 1, -1)]
        assert [row["non_idc"], row["idc"], row["unknown"]] == counts
        assert row["idc_fraction"] == pytest.approx(labels[rows].mean())
        assert row["rows"] == cohort.index["y"][rows].max() // 50 + 1
        assert row["cols"] == cohort.index["x"][rows].max() // 50 + 1
        sizes = cohort.index.loc[rows, ["height", "width"]].to_numpy()
        assert row["small"] == (sizes < 50).any(axis=1).sum()
        assert_channels(row, cohort, rows)
    for row in description.channels.to_dict("records"):
        rows = (cohort.patient_of == row["patient"]) & (names[labels] == row["class"])
        assert_channels(row, cohort, np.flatnonzero(rows))
    classes = description.classes.set_index("class")
    assert classes.index.tolist() == ["non-IDC", "IDC", "all"]
    assert_channels(classes.loc["IDC"], cohort, np.flatnonzero(labels == 1))
    assert_channels(classes.loc["all"], cohort, np.arange(len(cohort)))
    assert classes["patients"].tolist() == [6, 6, 6]
    summary = description.summary
    assert summary["idc_fraction"] == pytest.approx(labels.mean(), rel=1e-5)
    assert summary["patches_of_patients"]["max"] == description.patients["patches"].max()
    assert json.loads(json.dumps(summary)) == summary


def test_patch_sizes_are_counted(tmp_path: Path):
    cells = [
        *block("a", 2, 2),
        Cell("a", 2, 0, 1, pixels_of("a", 2, 0, height=20)),
        Cell("a", 2, 1, 0, pixels_of("a", 2, 1, height=20)),
        Cell("b", 0, 0, -1, pixels_of("b", 0, 0, height=20)),
        Cell("b", 0, 3, 0, pixels_of("b", 0, 3, width=8)),
        Cell("b", 1, 0, 1),
    ]
    description = describe(make_pack(tmp_path / "a.h5", cells))
    columns = ["height", "width", "patches", "non_idc", "idc", "unknown", "patients"]
    assert description.sizes[[*columns, "inside_slide"]].to_numpy().tolist() == [
        [50, 50, 5, 4, 1, 0, 2, 0],
        [20, 50, 3, 1, 1, 1, 2, 1],  # that of b has a patch below it
        [50, 8, 1, 1, 0, 0, 1, 0],
    ]
    assert description.patients["small"].tolist() == [2, 2]
    assert description.summary["small_patches"] == 4
    assert description.summary["small_inside_slide"] == 1


def test_unknown_labels_count_in_no_fraction(tmp_path: Path):
    cells = [*block("a", 1, 2, 1), Cell("a", 1, 0, 0), Cell("a", 1, 1, -1), Cell("b", 0, 0, -1)]
    description = describe(make_pack(tmp_path / "a.h5", cells))
    patients = description.patients.set_index("patient")
    assert patients.loc["a", "idc_fraction"] == pytest.approx(2 / 3)
    assert np.isnan(patients.loc["b", "idc_fraction"])
    assert description.classes["class"].tolist() == ["non-IDC", "IDC", "unknown", "all"]
    assert description.summary["idc_fraction"] == pytest.approx(2 / 3, rel=1e-5)
    assert description.summary["patients_with_one_class"] == 0


def test_hints_are_counted_for_each_patient(tmp_path: Path):
    copied = pixels_of("a", 0, 0)
    white = flat(255, 255, 255)
    cells = [*block("a", 3, 3), *block("b", 2, 2, 1), Cell("b", 5, 5, 1, copied)]
    cells += [Cell("b", 6, 6, 0, white), Cell("a", 6, 6, 0, white), Cell("c", 0, 0, 0, white)]
    next(cell for cell in cells if (cell.row, cell.col) == (1, 1)).label = 1
    description = describe(make_pack(tmp_path / "a.h5", cells))
    columns = ["label_hints", "blank_hints", "dark_band_hints", "near_duplicates"]
    assert description.patients[columns].to_numpy().tolist() == [
        [1, 1, 0, 1],
        [0, 1, 0, 1],
        [0, 1, 0, 0],  # white patches are not duplicates of each other
    ]
    assert description.summary["hints"]["patches"] == {"label": 1, "blank": 3, "dark band": 0}
    duplicates = description.duplicates[["group", "patient", "x", "y"]]
    assert duplicates.to_numpy().tolist() == [[1, "a", 0, 0], [1, "b", 250, 250]]
    assert description.summary["complete_3x3"] == 1


@pytest.mark.slow
@pytest.mark.real
def test_tables_of_the_real_patches(real_tree: Path, real_pack: Pack):
    description = describe(real_pack)
    cells, sizes = {}, Counter()
    for path in FolderStore(real_tree).list_files().paths:
        patient, label, name = path.split("/")
        _, _, x, y, _ = name.split("_")
        cells[patient, int(y[1:]), int(x[1:])] = int(label)
        with Image.open(real_tree / path) as image:
            sizes[image.height, image.width] += 1
    offsets = [(r, c) for r in (-50, 0, 50) for c in (-50, 0, 50) if (r, c) != (0, 0)]
    complete, isolated = 0, []
    for (patient, y, x), label in cells.items():
        neighbors = [cells.get((patient, y + r, x + c)) for r, c in offsets]
        complete += None not in neighbors
        if neighbors == [1 - label] * 8:
            isolated.append((patient, x - 1, y - 1))
    counts = Counter((patient, label) for (patient, _, _), label in cells.items())
    for row in description.patients.itertuples():
        assert row.non_idc == counts[row.patient, 0]
        assert row.idc == counts[row.patient, 1]
    assert description.summary["complete_3x3"] == complete
    hints = description.hints[description.hints["kind"] == "label"]
    places = hints[["patient", "x", "y"]].itertuples(index=False, name=None)
    assert sorted(places) == sorted(isolated)
    num_patches = description.sizes.set_index(["height", "width"])["patches"]
    assert num_patches.to_dict() == sizes
