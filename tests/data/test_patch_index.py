import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.packs import PATIENTS, add_patch, file_name, make_tree
from wsi_idc.core.errors import DataError, WorkerError
from wsi_idc.data.patch_index import (
    _parse,
    content_key,
    index_tree,
    issue_table,
    lost_patients,
    open_patch_store,
    read_issues,
)
from wsi_idc.data.patch_store import FileIssue
from wsi_idc.data.prepare import prepare
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE

NUM_PATCHES = sum(map(len, PATIENTS.values()))
PATH = "10253/1/10253_idx5_x51_y1_class1.png"
NESTED = "IDC_regular_ps50_idx5"


def index(root):
    with open_patch_store(root) as origin:
        return index_tree(origin, patch_px=50)


def key_of(root):
    with open_patch_store(root) as origin:
        return content_key(origin, origin.list_files().paths)


def rows(result) -> list[tuple]:
    table = result.table
    return list(zip(table["patient"], table["y"], table["x"], table["label"], strict=True))


EXPECTED = sorted(
    (patient, row * 50, col * 50, label)
    for patient, patches in PATIENTS.items()
    for row, col, label in patches
)


def test_sorted_by_patient_row_and_column(tree):
    result = index(tree)
    assert rows(result) == EXPECTED
    assert [row[0] for row in EXPECTED] == ["10253"] * 3 + ["10254"] * 2 + ["9"] * 2
    assert result.table["path"][1] == "10253/1/10253_idx5_x51_y1_class1.png"
    assert (result.rejected, result.flagged, result.num_other_files) == ((), (), 0)


def test_x_and_y_are_numbers_not_text(tmp_path):
    make_tree(tmp_path, {"1": [(0, 19, 0), (0, 3, 1), (11, 0, 0)]})
    assert [(y, x) for _, y, x, _ in rows(index(tmp_path))] == [(0, 150), (0, 950), (550, 0)]


@pytest.mark.parametrize("first", [0, 1, 26])
def test_coordinates_may_count_from_any_number(tmp_path, first):
    result = index(make_tree(tmp_path, first=first))
    assert rows(result) == EXPECTED
    assert result.rejected == ()


def test_off_the_grid_and_too_far_out(tree):
    last = (MAX_CELLS_PER_SIDE - 1) * 50
    reasons = {(0, 1): "off the grid", (50, 50): "off the grid", (51, 2): "off the grid"}
    reasons |= {(last + 51, 1): "too far out", (999_999_951, 1): "too far out"}
    reasons[1_000_000_001, 1] = "unknown name"
    for x, y in [*reasons, (last + 1, 1)]:
        (tree / f"9/0/9_idx5_x{x}_y{y}_class0.png").touch()
    result = index(tree)
    assert rows(result) == sorted([*EXPECTED, ("9", 0, last, 0)])
    assert {issue.path: issue.reason for issue in result.rejected} == {
        f"9/0/9_idx5_x{x}_y{y}_class0.png": reason for (x, y), reason in reasons.items()
    }
    detail = "most patches of the patient have x = 1 and y = 1 modulo 50"
    assert {i.detail for i in result.rejected if i.reason == "off the grid"} == {detail}


def test_each_patient_has_its_own_origin(tmp_path):
    for first, patient in enumerate("abc"):
        for col in range(3):
            add_patch(tmp_path, patient, 0, col, col % 2, first=17 * first)
    add_patch(tmp_path, "c", 1, 0, 0, first=35)
    for first in (1, 17):  # of two equally frequent origins, the more frequent one in the tree
        add_patch(tmp_path, "d", 0, 0, 0, first=first)
    result = index(tmp_path)
    assert rows(result) == [
        *((patient, 0, 50 * col, col % 2) for patient in "abc" for col in range(3)),
        ("d", 0, 0, 0),
    ]
    assert [(issue.path, issue.detail) for issue in result.rejected] == [
        (
            f"{patient}/0/{patient}_idx5_x{x}_y{y}_class0.png",
            f"most patches of the patient have x = {first} and y = {first} modulo 50",
        )
        for patient, x, y, first in (("c", 35, 85, 34), ("d", 1, 1, 17))
    ]


def test_patients_of_which_all_files_are_left_out(tree, monkeypatch):
    folders = ("10253/", "1/", "5/1/")  # these cannot be listed
    files = ("4/0/notes.png", "9/0/9_idx5_x1_y1_class2.png", "stray.png", "6_idx5_x1_y1_class0.png")
    with open_patch_store(tree) as store:
        issues = [FileIssue(path, "") for path in (*folders, *files)]
        assert lost_patients(store, issues, {"10253", "10254", "9"}) == ["1", "4", "5", "6"]
        system = (
            "lost+found/",
            "$RECYCLE.BIN/",
            ".Trash-0/",
            "@eaDir/",
            "System Volume Information/",
        )
        others = ("nested/x/", "10254/1/", "9/masks/", "10254/0/1/")
        issues = [FileIssue(path, "") for path in (*system, *others)]
        assert lost_patients(store, issues, {"10253", "10254", "9", "0"}) == []
    monkeypatch.chdir(tree / "9")
    with open_patch_store(Path("0")) as store:
        assert lost_patients(store, [FileIssue("notes.png", "")], []) == ["9"]
    with open_patch_store(Path()) as store:
        assert lost_patients(store, [FileIssue("1/", "")], {"9"}) == []
    monkeypatch.chdir(tree.parent)
    with open_patch_store(Path()) as store:
        issues = [FileIssue(f"{tree.name}/{name}/", "") for name in ("5", "6/1", "lost+found")]
        issues.append(FileIssue("other/", ""))
        assert lost_patients(store, issues, {"10253", "9"}) == ["5", "6"]


def test_a_pipe_is_no_table_of_issues(tmp_path):
    os.mkfifo(tmp_path / "rejected.csv")
    assert read_issues(tmp_path / "rejected.csv") == []


def test_a_file_that_links_to_itself_is_left_out_and_its_folder_is_read(tree):
    link = tree / "9/0/9_idx5_x1_y1_class0.png"
    link.symlink_to(link)
    report = prepare(tree, tree.parent / "a.h5")
    reason = "cannot be read: Too many levels of symbolic links"
    assert report.rejected == (FileIssue(f"9/0/{link.name}", "no access", reason),)
    assert report.num_patches == len(EXPECTED)


def test_a_folder_that_vanishes_while_it_is_listed_is_an_error(tree, monkeypatch):
    def scan(folder: Path) -> object:
        if folder.name == "0":
            folder.rename(folder.with_name("away"))
        return scandir(folder)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(WorkerError, match="/0: the folder vanished while it was read; run again"):
        index(tree)


@pytest.fixture
def nested(tree: Path) -> Path:
    """Return the tree with a copy of itself inside."""
    shutil.copytree(tree, tree / NESTED)
    return tree


def test_nested_copy_of_the_tree(nested):
    result = index(nested)
    assert rows(result) == EXPECTED
    assert not result.table["path"].str.contains(NESTED).any()
    detail = f"{NUM_PATCHES} copies of patches in other folders; used if the first file is damaged"
    assert result.flagged == (FileIssue(f"{NESTED}/", "nested copy", detail),)
    assert result.rejected == ()


def test_nested_copy_that_differs(nested):
    copy = f"{NESTED}/{PATH}"
    with (nested / copy).open("ab") as file:
        file.write(b"more")
    result = index(nested)
    assert rows(result) == EXPECTED
    assert result.rejected == (FileIssue(copy, "differs from its copy", f"{PATH} is kept"),)
    assert result.flagged[0].detail.startswith(f"{NUM_PATCHES - 1} copies")
    # Of the two, the undamaged one is kept.
    (nested / PATH).write_bytes((nested / PATH).read_bytes()[:500])
    result = index(nested)
    assert result.rejected == (FileIssue(PATH, "differs from its copy", f"{copy} is kept"),)
    assert copy in set(result.table["path"])
    assert len(result.table) == NUM_PATCHES


def test_the_first_undamaged_one_of_several_copies_is_kept(tree):
    whole = (tree / PATH).read_bytes()
    contents = {PATH: whole[:500], f"b/{PATH}": whole, f"c/c/{PATH}": whole + b"more"}
    for name, content in contents.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    result = index(tree)
    assert rows(result) == EXPECTED
    assert result.table["path"][1] == f"b/{PATH}"
    assert result.rejected == tuple(
        FileIssue(path, "differs from its copy", f"b/{PATH} is kept")
        for path in (PATH, f"c/c/{PATH}")
    )


def test_tree_only_below_another_folder(tmp_path):
    make_tree(tmp_path / "archive" / "IDC_regular_ps50_idx5")
    result = index(tmp_path)
    assert rows(result) == EXPECTED
    assert (result.rejected, result.flagged) == ((), ())


def test_part_of_the_tree_above_a_complete_copy(nested):
    shutil.rmtree(nested / "10254")
    result = index(nested)
    assert rows(result) == EXPECTED
    below = result.table["path"].str.startswith(f"{NESTED}/")
    assert set(result.table["patient"][below]) == {"10254"}


def test_one_patient_folder_or_class_folder(tree, monkeypatch):
    assert rows(index(tree / "10253")) == EXPECTED[:3]
    assert rows(index(tree / "10253" / "1")) == [EXPECTED[1]]
    monkeypatch.chdir(tree / "10253")
    assert rows(index(Path())) == EXPECTED[:3]


def test_a_link_to_a_folder_keeps_its_own_name(tree, tmp_path):
    for name, folder in [("10253", "10253"), ("10254/1", "10254/1")]:
        store = tmp_path / "store" / name.replace("/", "_")
        store.parent.mkdir(exist_ok=True)
        (tree / folder).rename(store)
        (tree / folder).symlink_to(store)
    assert rows(index(tree / "10253")) == EXPECTED[:3]
    assert rows(index(tree / "10254" / "1")) == [EXPECTED[3]]


def test_stray_file_at_the_top_of_the_file_system(tree):
    # /data is a usual mount point.
    good = "10253/0/10253_idx5_x1_y1_class0.png"
    names = open_patch_store(Path("/")).parent_names
    table, problems = _parse(["stray.png", good], parent_names=names)
    assert table["path"].tolist() == [good]
    assert [problem.path for problem in problems] == ["stray.png"]


def test_names_that_contradict_their_folders(tree):
    unknown = ("unknown name", "not PATIENT_idx5_xX_yY_classC.png, where C is 0 or 1")
    patient, top = "patient contradicts folder", tree.parent.name
    class_1 = ("class contradicts folder", "class 1 in the name, 0 in the folder")
    expected = {
        "9/0/9_idx5_x1_y1_class1.png": class_1,
        "9/0/8_idx5_x1_y1_class0.png": (patient, "patient 8 in the name, 9 in the folder"),
        "9_idx5_x1_y1_class0.png": (patient, f"patient 9 in the name, {top} in the folder"),
        "a\\b/0/a\\b_idx5_x1_y1_class0.png": ("unsafe patient id", "not a plain file name"),
        "9/0/thumbnail.png": unknown,
        "stray.png": unknown,
        "evil\n/0/evil\n_idx5_x1_y1_class0.png": unknown,
        "9/0/9_idx5_x-49_y1_class0.png": unknown,
        "9/0/9_idx5_x٣_y1_class0.png": unknown,
        "9/0/9_idx5_x1_y1_class2.png": unknown,
    }
    for path in expected:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).touch()
    result = index(tree)
    assert rows(result) == EXPECTED
    assert {i.path: (i.reason, i.detail) for i in result.rejected} == expected


@pytest.mark.parametrize(
    ("kept", "left_out", "label"),
    [
        (PATH, "10253/1/10253_idx6_x51_y1_class1.png", 1),
        ("10253/0/10253_idx5_x51_y1_class0.png", PATH, -1),
    ],
)
def test_two_patches_in_one_cell(tree, kept, left_out, label):
    shutil.copy(tree / PATH, tree / (kept if label == -1 else left_out))
    result = index(tree)
    assert result.rejected == (FileIssue(left_out, "duplicate coordinate", f"{kept} is kept"),)
    assert result.table.loc[1, ["path", "label"]].tolist() == [kept, label]
    assert len(result.table) == NUM_PATCHES
    issue = FileIssue(kept, "label unknown", f"{left_out} in the same cell has another label")
    assert result.flagged == ((issue,) if label == -1 else ())


def test_other_and_hidden_files_are_counted_and_upper_case_endings_read(tree):
    for name in ("readme.txt", "10253/0/Thumbs.db"):
        (tree / name).touch()
    path = tree / "10253/0/10253_idx5_x1_y1_class0.png"
    path.with_name(f"._{path.name}").touch()  # macOS adds this file to an archive
    path.rename(path.with_suffix(".PNG"))
    result = index(tree)
    assert rows(result) == EXPECTED
    assert (result.num_other_files, result.rejected) == (3, ())


def test_any_patient_id(tmp_path):
    ids = ["Müller 1", "TCGA-A1-A0SB", "a_idx5_x1", "<b>", "病人"]
    make_tree(tmp_path, {patient: [(0, 0, 0)] for patient in ids})
    assert sorted(index(tmp_path).table["patient"]) == sorted(ids)


def test_name_that_is_not_utf8_is_reported(tree):
    odd = os.fsdecode(b"\xff")
    (tree / odd / "0").mkdir(parents=True)
    (tree / odd / "0" / f"{odd}_idx5_x1_y1_class0.png").touch()
    result = index(tree)
    assert rows(result) == EXPECTED
    assert [p.reason for p in result.rejected] == ["unsafe patient id"]
    assert len(key_of(tree)) == 16


def test_links_are_followed_and_each_folder_read_once(tree, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "10254"
    elsewhere.parent.mkdir()
    (tree / "10254").rename(elsewhere)
    (tree / "10254").symlink_to(elsewhere)
    for patient in PATIENTS:
        (tree / patient / "loop").symlink_to(tree)
        (tree / patient / "other").symlink_to(elsewhere)
    (tmp_path / "link").symlink_to(tree)
    for root in (tree, tmp_path / "link"):
        result = index(root)
        assert rows(result) == EXPECTED
        assert (result.rejected, result.flagged) == ((), ())


def test_folder_that_cannot_be_listed_is_reported(tree):
    if os.geteuid() != 0:
        (tree / "10254").chmod(0)
        result = index(tree)
        (tree / "10254").chmod(0o755)
    else:
        # Root may list any folder: become another user.
        for folder in (tree, *tree.parents):
            if folder.stat().st_uid == 0 and folder != folder.parent:
                folder.chmod(folder.stat().st_mode | 0o055)
        (tree / "10254").chmod(0o700)
        os.seteuid(65534)
        try:
            result = index(tree)
        finally:
            os.seteuid(0)
    assert result.rejected == (FileIssue("10254/", "no access", "Permission denied"),)
    assert rows(result) == [row for row in EXPECTED if row[0] != "10254"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such folder or file; give a patch tree"),
        (lambda path: path.write_bytes(b"PNG"), "neither a folder nor a zip; give a patch tree"),
        (lambda path: path.mkdir(), "no PNG file found; a patch tree holds PATIENT"),
        (
            lambda path: add_patch(path / "x", "9", 0, 0, 0).rename(path / "x/9/0/p.png"),
            r"the first wrong file is 'x/9/0/p.png' \(unknown name: not PATIENT.*C is 0 or 1\)",
        ),
    ],
)
def test_a_path_without_patches(tmp_path, make, message):
    make(tmp_path / "tree")
    with pytest.raises(DataError, match=message) as caught:
        index(tmp_path / "tree")
    assert len(str(caught.value).splitlines()) == 1


def test_key_depends_on_names_sizes_and_times_and_not_on_the_folder(tree, tmp_path):
    before = key_of(tree)
    copy = shutil.copytree(tree, tmp_path / "copy")
    assert key_of(copy) == before
    path = copy / "9/0" / file_name("9", 0, 3, 0)
    os.utime(path, ns=(0, 0))
    touched = key_of(copy)
    path.unlink()
    assert len({before, touched, key_of(copy)}) == 3


def test_issue_table():
    table = issue_table([FileIssue("b", "r", "d"), FileIssue("a\udcff", "r")])
    assert table.to_numpy().tolist() == [["a\udcff", "r", ""], ["b", "r", "d"]]
    assert list(issue_table([]).columns) == ["path", "reason", "detail"]


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=12),
    st.integers(0, 49),
    st.integers(0, 2**32 - 1),
)
def test_any_set_of_cells_comes_back(tmp_path_factory, cells, first, seed):
    root = tmp_path_factory.mktemp("tree")
    order = np.random.default_rng(seed).permutation(sorted(cells))
    folder = root / "1" / "0"
    folder.mkdir(parents=True)
    for row, col in order:
        (folder / file_name("1", row, col, 0, first=first)).touch()
    result = index(root)
    assert [(y // 50, x // 50) for _, y, x, _ in rows(result)] == sorted(cells)
    assert result.rejected == ()
