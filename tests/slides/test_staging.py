from contextlib import closing
from pathlib import Path

import pytest

from wsi_idc.core.scratch import own_folder
from wsi_idc.slides.manifest import ManifestRow
from wsi_idc.slides.staging import staged_slides


@pytest.fixture
def rows(tmp_path: Path) -> list[ManifestRow]:
    """Return an SVS file and a slide of several files."""
    slow = tmp_path / "slow"
    for name in ("a.svs", "m.mrxs", "m/Data0.dat", "m/deep/Slidedat.ini", "c.svs"):
        (slow / name).parent.mkdir(parents=True, exist_ok=True)
        (slow / name).write_text(name)
    return [ManifestRow(slow / name, name[0], None) for name in ("a.svs", "m.mrxs", "c.svs")]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WSI_IDC_SCRATCH", str(tmp_path / "fast"))
    return tmp_path / "fast"


def staged(rows, *, needed=lambda row: True, stopped=lambda: False):
    return closing(staged_slides(rows, is_needed=needed, is_stopped=stopped))


def test_slides_are_copied_and_removed_one_after_the_other(rows, scratch: Path):
    copies = []
    with staged(rows) as slides:
        for row, copy in slides:
            assert copy.is_relative_to(scratch)
            assert copy.read_text() == row.slide.name
            if row.patient == "m":
                assert (copy.parent / "m/deep/Slidedat.ini").read_text() == "m/deep/Slidedat.ini"
            copies.append(copy)
            assert [path.exists() for path in copies] == [False, True, True][-len(copies) :]
    assert [path.name for path in copies] == ["a.svs", "m.mrxs", "c.svs"]
    assert list(own_folder(scratch).iterdir()) == []


def test_without_the_variable_slides_are_not_copied(rows):
    with staged(rows) as slides:
        assert list(slides) == [(row, None) for row in rows]


def test_only_needed_slides_are_copied(rows, scratch: Path):
    with staged(rows, needed=lambda row: row.patient == "m") as slides:
        assert [copy is not None for _, copy in slides] == [False, True, False]
    with staged(rows, stopped=lambda: True) as slides:
        assert [copy for _, copy in slides] == [None] * 3
    with staged([ManifestRow(scratch / "x.svs", "x", None)]) as slides:
        assert [copy for _, copy in slides] == [None]  # the slide is on the fast disk already


def test_slide_that_cannot_be_copied_is_read_itself(rows, scratch: Path, monkeypatch, caplog):
    rows[0].slide.unlink()
    with staged(rows) as slides:
        assert [copy is not None for _, copy in slides] == [False, True, True]
    assert "a.svs is not copied to WSI_IDC_SCRATCH: No such file or directory" in caplog.text
    monkeypatch.setattr("wsi_idc.core.scratch._LEFT_FREE", 10**18)
    with staged(rows[1:]) as slides:
        assert [copy for _, copy in slides] == [None, None]
    assert "not enough space" in caplog.text


def test_copies_of_killed_processes_are_removed(rows, scratch: Path):
    folder = own_folder(scratch)
    (folder / "slides-1-dead").mkdir()
    (folder / "slides-1-dead" / "big.svs").write_text("x")
    (folder / "slides-1-dead.lock").touch()
    with staged(rows) as slides:
        next(slides)
        assert not (folder / "slides-1-dead").exists()
        with staged(rows) as others:  # copies of a running process stay
            next(others)
            assert len(list(folder.glob("slides-*.lock"))) == 2
    assert list(folder.iterdir()) == []
