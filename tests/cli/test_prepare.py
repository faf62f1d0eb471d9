import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.cli.commands import RunCommand
from tests.packs import make_tree
from tests.small_slides import make_slides
from wsi_idc.data.pack import Pack


def test_a_tree_is_packed_without_damaged_files(tmp_path: Path, command: RunCommand):
    tree = make_tree(tmp_path / "tree")
    damaged = next(tree.rglob("*.png"))
    damaged.write_text("no image")
    name = str(damaged.relative_to(tree))
    out = tmp_path / "data" / "idc.h5"
    result = command("prepare", tree, "--out", out)
    assert result.code == 0
    assert "left out: 1 x unreadable" in result.out
    assert name in result.out
    assert damaged.name in (tmp_path / "data" / "rejected.csv").read_text()
    strict = command("prepare", tree, "--out", out, "--strict", "--json")
    assert strict.code == 1
    assert "1 file was left out (--strict)" in strict.error
    assert json.loads(strict.out)["rejected"][0]["path"] == name


def test_patients_without_a_packed_file_are_named(tmp_path: Path, command: RunCommand):
    tree = make_tree(tmp_path / "tree")
    for file in (tree / "9").rglob("*.png"):
        file.write_text("no image")
    result = command("prepare", tree, "--out", tmp_path / "idc.h5")
    assert result.code == 1
    assert result.error.startswith("Error: no file of 1 patient could be packed: 9; the pack has")
    assert Pack(tmp_path / "idc.h5").patients == ["10253", "10254"]


def test_a_zip_is_packed_unless_a_name_leads_out_of_it(tmp_path: Path, command: RunCommand):
    tree = make_tree(tmp_path / "tree")
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", tree)
    result = command("prepare", archive, "--out", tmp_path / "idc.h5", "--json")
    assert result.code == 0
    assert json.loads(result.out)["num_patches"] == 7
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("../evil.png", b"x")
    result = command("prepare", archive, "--out", tmp_path / "evil.h5")
    assert result.code == 1
    assert "refused, because '../evil.png' is not a relative path" in result.error
    assert not (tmp_path / "evil.h5").exists()


NO_PATCHES = (
    "Error: no patches: data/ has no patch tree and no zip; get the data set with "
    "wsi-idc download, or give TREE"
)


@pytest.mark.parametrize("data", ["none", "empty", "a pack", "another name"])
def test_the_default_tree_must_have_patches(
    tmp_path: Path, cohort: Pack, data: str, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.chdir(tmp_path)
    if data != "none":
        Path("data").mkdir()
    if data == "a pack":
        shutil.copy(cohort.path, "data")
    if data == "another name":
        Path("data", "a.png").touch()
        message = "data: no patch found; the first wrong file is 'a.png' (unknown name: not"
        assert message in command("prepare").error
    else:
        assert command("prepare").error == NO_PATCHES


@pytest.fixture
def slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working folder with three slides of two patients, and change into it."""
    monkeypatch.chdir(tmp_path)
    return make_slides(tmp_path)


OF_SLIDES = ("prepare", "--slides", "slides/slides.csv", "--annotations", "outlines")


def test_slides_are_packed(slides: Path, command: RunCommand):
    result = command(*OF_SLIDES, "--out", "data/a.h5")
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        "pack         data/a.h5",
        "slides       3 of 2 patients",
        "patches      6",
        "labels       1 non-IDC, 3 IDC, 2 unknown",
        "unannotated  tissue without outline: unknown",
        "resolution   4 um/px, 50 px a side",
        "table        data/a_slides.csv",
        "pictures     data/a_slides/ (look at them before training)",
        "  P/one: 1 IDC, 0 non-IDC, 2 unknown",
        "  P/two: 0 IDC, 1 non-IDC, 0 unknown",
        "  Q/three: 2 IDC, 0 non-IDC, 0 unknown",
    ]
    assert Pack(Path("data/a.h5")).patients == ["P", "Q"]


def test_pictures_of_another_grouping_are_named(slides: Path, command: RunCommand):
    command(*OF_SLIDES, "--out", "data/a.h5")
    manifest = Path("slides/slides.csv")
    table = pd.read_csv(manifest, dtype=str).assign(patient="Z")
    table.to_csv(manifest, index=False)
    result = command(*OF_SLIDES, "--out", "data/a.h5")
    assert result.code == 0, result.err
    lines = " ".join(result.out.split())
    assert "kept: 3 pictures of slides that are not in the pack" in lines
    assert "data/a_slides/P/one.png, data/a_slides/P/two.png, data/a_slides/Q/three.png" in lines


def test_a_contradicting_mpp_is_named_at_the_end(slides: Path, command: RunCommand):
    manifest = Path("slides/slides.csv")
    table = pd.read_csv(manifest, dtype=str)
    table["mpp"] = ["0.5", *[""] * (len(table) - 1)]
    table.to_csv(manifest, index=False)
    result = command(*OF_SLIDES, "--out", "data/a.h5")
    lines = " ".join(result.out.split())
    assert "one.tif is read at 0.5 um/px, but the slide file states 1" in lines
    source = Pack(Path("data/a.h5")).slides[0].mpp_source
    assert source == "given, but the file states 1"


def test_options_of_slides_are_used(slides: Path, command: RunCommand):
    options = ("--classes", "Tumor=IDC, Stroma=ignore", "--min-share", "0.6", "--patch-px", 25)
    result = command(*OF_SLIDES, "--out", "a.h5", "--unannotated", "skip", *options, "--json")
    found = json.loads(result.out)
    # The class "Ignore*" of the slide "two" has no row in the table.
    assert result.code == 1
    assert list(found["set_aside"]) == ["slides/two.tif"]
    assert "no target for the class 'Ignore*'" in found["set_aside"]["slides/two.tif"]
    assert found["unannotated"] == "skip"
    assert (found["info"]["patch_px"], found["info"]["mpp"]) == (25, 4.0)
    # A patch has 100 um. Of "three", the outline covers 3 of the 4 columns.
    assert [row["idc"] for row in found["slides"]] == [4, None, 6]


def test_slides_that_are_set_aside_are_listed(slides: Path, command: RunCommand):
    (slides / "slides" / "two.tif").write_bytes(b"II*\0 no slide")
    result = command(*OF_SLIDES, "--out", "a.h5")
    assert result.code == 1
    assert "slides       2 of 2 patients" in result.out
    assert "left out: slides/two.tif: " in result.out
    assert result.error == "Error: 1 of 3 slides could not be packed; the reasons are above"
    table = pd.read_csv("a_slides.csv", index_col="slide")
    assert table["reason"].notna().to_dict() == {"one": False, "two": True, "three": False}


def test_saved_patches_pack_to_the_same_patches(slides: Path, command: RunCommand):
    result = command(*OF_SLIDES, "--out", "a.h5", "--save-patches", "tree")
    assert result.code == 0
    assert "4 labelled patches in tree" in result.err
    assert command("prepare", "tree", "--out", "b.h5").code == 0
    of_slides, of_tree = Pack(Path("a.h5")), Pack(Path("b.h5"))
    rows = np.flatnonzero(of_slides.index["label"] >= 0)
    assert of_tree.index["label"].tolist() == of_slides.index["label"].iloc[rows].tolist()
    assert of_tree.patient_of.tolist() == of_slides.patient_of[rows].tolist()
    np.testing.assert_array_equal(of_tree.patches[:], of_slides.patches[rows])
    assert command(*OF_SLIDES, "--out", "a.h5", "--save-patches", "tree").code == 0
    # With other labels, a patch would be in two classes.
    others = ("--unannotated", "non-IDC", "--min-share", 0.9)
    result = command(*OF_SLIDES, "--out", "a.h5", "--save-patches", "tree", *others)
    assert result.code == 1
    assert result.error.startswith("Error: tree has other files, such as tree/")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("tree", "--slides", "a.csv"), "give a patch tree or --slides, not both"),
        (("--slides", "a.csv", "--strict"), "--strict is for a patch tree, not for --slides"),
        (("--slides", "a.csv", "--num-workers", 2), "--num-workers is for a patch tree"),
        (("tree", "--annotations", "a"), "--annotations needs --slides"),
        (("tree", "--save-patches", "a"), "--save-patches needs --slides"),
        (("tree", "--unannotated", "skip"), "--unannotated needs --slides"),
        (("tree", "--min-tissue", 0.5), "--min-tissue needs --slides"),
        (("tree", "--tissue-threshold", 9), "--tissue-threshold needs --slides"),
    ],
)
def test_options_of_the_other_kind_are_usage_errors(command: RunCommand, options, reason):
    result = command("prepare", *options)
    assert result.code == 2
    assert reason in result.err
