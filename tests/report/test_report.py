import json
import re
import shutil
from html import escape
from pathlib import Path
from urllib.parse import quote, unquote

import pandas as pd
import pytest

from tests.report.browser import ask, needs_chromium, requests_in
from tests.report.test_patient_page import assert_closed
from tests.small_maps import EVIL, write_hand_map, write_two_slides
from wsi_idc.core.errors import MapError, WsiIdcError
from wsi_idc.maps.map_reader import map_paths, read_image, read_map
from wsi_idc.maps.small_image import read_small_image
from wsi_idc.plotting.page_links import link_patients, model_key
from wsi_idc.report.patient_page import tissue_pictures
from wsi_idc.report.report import build_report


def test_report_has_a_page_a_patient_and_an_index(tmp_path: Path):
    maps, out = tmp_path / "maps", tmp_path / "report"
    for patient in ("P1", EVIL, "index", "INDEX"):
        write_hand_map(maps, patient=patient)
    (maps / "bad.h5").write_text("no map")
    report = build_report(map_paths(maps), out, tables=maps)
    names = {path.name for path in out.iterdir()}
    assert {name for name in names if not name.startswith("bokeh-")} == {
        "P1.html",
        f"{EVIL}.html",
        "index.html",
    }
    assert report.pages == {name: out / f"{name}.html" for name in ("P1", EVIL)}
    assert {path.name for path in report.failed} == {"bad.h5", "index.h5", "INDEX.h5"}
    assert "would replace the cohort page" in report.failed[maps / "index.h5"]
    index = (out / "index.html").read_text()
    assert "Maps without a page: 3" in index
    assert pd.read_csv(maps / "cohort.csv")["patient"].tolist() == [EVIL, "P1"]
    assert report.hdf5 == maps / "cohort.h5"
    again = build_report(map_paths(maps), out, tables=maps, threshold=0.85)
    assert again.pages == report.pages
    assert pd.read_csv(maps / "cohort.csv")["idc_fraction"].tolist() == [0.2, 0.2]


def test_slides_of_a_patient_have_pages_and_a_list(tmp_path: Path):
    maps, out = tmp_path / "maps", tmp_path / "report"
    write_two_slides(maps, "a")
    write_two_slides(maps, EVIL)
    write_hand_map(maps, patient="a_b")
    report = build_report(map_paths(maps), out, tables=maps)
    pages = {name: out / f"{name}.html" for name in ("a/a", "a/b", f"{EVIL}/b", "a_b", "a", EVIL)}
    assert report.pages == pages | {f"{EVIL}/a": out / EVIL / "a.html"}
    assert report.failed == {}
    assert all(path.is_file() for path in report.pages.values())
    assert links_of(out / "index.html") == {"a.html", "a_b.html", f"{quote(EVIL)}.html"}
    assert links_of(out / "a.html") == {"index.html", "a/a.html", "a/b.html"}
    neighbors = {"../a/a.html", "../a_b.html"}
    assert links_of(out / "a" / "b.html") == {"../index.html", "../a.html", *neighbors}
    page = assert_closed((out / f"{EVIL}.html").read_text())
    assert EVIL in page.texts
    text = " ".join(assert_closed((out / "index.html").read_text()).texts)
    assert "3 patients" in " ".join(text.split())
    assert "2 slides:" in text
    again = build_report(map_paths(maps), out, tables=maps)
    assert again.pages == report.pages


def links_of(page: Path) -> set[str]:
    attributes = assert_closed(page.read_text()).attributes
    links = {value for tag, name, value in attributes if (tag, name) == ("a", "href")}
    for link in links:
        assert (page.parent / unquote(link)).is_file()
    return links


def test_foreign_page_of_a_patient_with_several_slides_is_not_replaced(tmp_path: Path):
    write_two_slides(tmp_path / "maps", "P1")
    write_hand_map(tmp_path / "maps", patient="P2")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "P1.html").write_text("mine")
    report = build_report(map_paths(tmp_path / "maps"), tmp_path / "out", tables=tmp_path)
    assert list(report.pages) == ["P2"]
    assert [path.name for path in report.failed] == ["a.h5", "b.h5"]


def test_report_without_maps_writes_nothing(tmp_path: Path):
    (tmp_path / "bad.h5").write_text("no map")
    with pytest.raises(MapError, match="none of 1 maps can be used"):
        build_report([tmp_path / "bad.h5"], tmp_path / "report", tables=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(WsiIdcError, match="is a file"):
        build_report([], tmp_path / "file", tables=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"bad.h5", "file"}


def test_foreign_index_is_not_replaced(tmp_path: Path):
    write_hand_map(tmp_path, patient="P1")
    mine = tmp_path / "index.html"
    mine.write_text("<title>My site</title>")
    with pytest.raises(WsiIdcError, match=r"index\.html exists and was not written by this"):
        build_report(map_paths(tmp_path), tmp_path, tables=tmp_path)
    assert mine.read_text() == "<title>My site</title>"
    mine.unlink()
    for _ in range(2):
        build_report(map_paths(tmp_path), tmp_path, tables=tmp_path)


def test_foreign_pages_and_tables_are_not_replaced(tmp_path: Path):
    maps, out = tmp_path / "maps", tmp_path / "report"
    for patient in ("P1", "P2"):
        write_hand_map(maps, patient=patient)
    out.mkdir()
    mine = out / "P1.html"
    mine.write_text("<title>Evaluation: wsi-idc</title>")
    report = build_report(map_paths(maps), out, tables=maps)
    assert list(report.pages) == ["P2"]
    assert report.failed == {
        maps / "P1.h5": f"{mine} exists and was not written by this command; give another --out"
    }
    assert mine.read_text() == "<title>Evaluation: wsi-idc</title>"
    mine.unlink()
    (out / "index.html").unlink()  # as where a report was stopped: its pages are known
    assert list(build_report(map_paths(maps), out, tables=maps).pages) == ["P1", "P2"]
    for name in ("cohort.csv", "cohort.h5"):
        (tmp_path / "other").mkdir(exist_ok=True)
        table = tmp_path / "other" / name
        table.write_text("patient,age\n")
        with pytest.raises(MapError, match=rf"{name} exists and was not written by this command"):
            build_report(map_paths(maps), tmp_path / "new", tables=tmp_path / "other")
        assert table.read_text() == "patient,age\n"
        table.unlink()
    assert not (tmp_path / "new").exists()


def test_unwritable_page_is_set_aside(tmp_path: Path):
    for patient in ("P1", "P2"):
        write_hand_map(tmp_path, patient=patient)
    (tmp_path / "report" / "P1.html").mkdir(parents=True)
    report = build_report(map_paths(tmp_path), tmp_path / "report", tables=tmp_path)
    assert list(report.pages) == ["P2"]
    assert list(report.failed) == [tmp_path / "P1.h5"]
    assert pd.read_csv(tmp_path / "cohort.csv")["patient"].tolist() == ["P2"]


@pytest.mark.parametrize(
    "notes",
    [{}, {"architecture": {}, "sha256": 5, "role_of_patient": [], "tta": {}, "ensemble": 1}],
)
def test_a_map_with_odd_notes_has_a_page(tmp_path: Path, notes: dict):
    paths = [write_hand_map(tmp_path, patient=name, model=notes) for name in "ab"]
    report = build_report(paths, tmp_path / "report", tables=tmp_path)
    assert (list(report.pages), report.failed) == (["a", "b"], {})


def test_shrunk_tissue_is_at_the_same_place(tmp_path: Path):
    path = write_hand_map(tmp_path)  # 4 x 4 cells of 50 px
    pictures, scale = tissue_pictures(read_map(path), read_small_image(path, 43))
    assert scale == 0.2
    expected, full = tissue_pictures(read_map(path), read_image(path))
    assert full == 1
    assert pictures[0][1:] == expected[0][1:]


def test_only_pages_of_changed_maps_are_made_again(tmp_path: Path):
    maps, out = tmp_path / "maps", tmp_path / "report"
    for patient in ("P1", "P2", "P3", "P4"):
        write_hand_map(maps, patient=patient)
    build_report(map_paths(maps), out, tables=maps)
    index = (out / "index.html").read_text()
    before = {path.name: path.stat().st_ino for path in out.glob("P*.html")}
    write_hand_map(maps, patient="P2")
    build_report(map_paths(maps), out, tables=maps)
    after = {path.name: path.stat().st_ino for path in out.glob("P*.html")}
    assert {name for name in before if before[name] != after[name]} == {"P2.html"}
    assert (out / "index.html").read_text() == index
    build_report(map_paths(maps), out, tables=maps, threshold=0.2)
    assert all(path.stat().st_ino != after[path.name] for path in out.glob("P*.html"))
    (out / "P1.html").write_text((out / "P1.html").read_text().replace('"rows"', '"odd"'))
    build_report(map_paths(maps), out, tables=maps, threshold=0.2)  # a damaged card
    assert '"odd"' not in (out / "P1.html").read_text()


def test_evaluations_and_pages_of_patients_are_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_two_slides(Path("maps"), "a")
    write_hand_map(Path("maps"), patient=EVIL)
    write_hand_map(Path("maps"), patient="other", model={"sha256": "ab" * 32})
    folder = tmp_path / "runs" / "r" / "eval-test"
    (tmp_path / "eval" / "damaged").mkdir(parents=True)
    (tmp_path / "eval" / "damaged" / "metrics.json").write_text("[]")
    folder.mkdir(parents=True)
    method = {"sha256": "0123456789abcdef" * 4}
    (folder / "metrics.json").write_text(json.dumps({"provenance": {"method": method}}))
    build_report(map_paths(Path("maps")), Path("report"), tables=Path("maps"))
    assert "evaluation" not in (tmp_path / "report" / "a" / "a.html").read_text()  # it has no page
    page = folder / "report.html"
    names = ["a", "a/b", escape(EVIL), "other", "none", "../x"]
    page.write_text("".join(f'<a data-patient="{name}">' for name in names))
    for out in ("report", "second"):
        build_report(map_paths(Path("maps")), Path(out), tables=Path("maps"))
        links = re.findall(r'href="([^"]*)"', page.read_text())
        assert links == [f"../../../{out}/{quote(name)}.html" for name in ("a", "a/b", EVIL)]
        assert all((folder / unquote(link)).is_file() for link in links)
    assert "../../runs/r/eval-test/report.html" in links_of(tmp_path / "second" / "a" / "b.html")
    assert "runs/" not in (tmp_path / "report" / "other.html").read_text()
    build_report([Path("maps", "other.h5")], Path("third"), tables=Path("third"))
    assert re.findall(r'href="([^"]*)"', page.read_text()) == links
    shutil.rmtree("second")
    link_patients(page, Path("third"), model_key(method))
    assert "href" not in page.read_text()


def test_pages_of_other_maps_are_named_and_kept(tmp_path: Path):
    maps, out = tmp_path / "maps", tmp_path / "report"
    for patient in ("P1", "P2", EVIL):
        write_hand_map(maps, patient=patient)
    slides = write_two_slides(maps, "a")
    assert build_report(map_paths(maps), out, tables=maps).stale == []
    (out / "mine.html").write_text("<title>Patient P1: wsi-idc</title>")
    report = build_report([maps / "P1.h5", slides[0]], out, tables=out)
    assert report.stale == sorted([out / "P2.html", out / f"{EVIL}.html", out / "a" / "b.html"])
    assert all(page.is_file() for page in report.stale)


def test_the_code_of_all_pages_is_in_one_file(tmp_path: Path):
    maps, out = tmp_path / "maps", tmp_path / "report"
    for patient in ("P1", "P2"):
        write_hand_map(maps, patient=patient)
    build_report(map_paths(maps), out, tables=maps)
    (script,) = out.glob("bokeh-*.js")
    assert script.stat().st_size > 1_000_000
    page = (out / "P1.html").read_text()
    assert len(page) < 200_000
    assert f'<script src="{script.name}"></script>' in page
    alone = tmp_path / "alone"
    build_report(map_paths(maps), alone, tables=maps, single_file=True)
    assert list(alone.glob("*.js")) == []
    page = (alone / "P1.html").read_text()
    assert len(page) > 1_000_000
    assert "<script src" not in page


@needs_chromium
def test_a_page_with_a_script_file_works(tmp_path: Path):
    write_two_slides(tmp_path / "maps", "a")
    build_report(map_paths(tmp_path / "maps"), tmp_path / "out", tables=tmp_path)
    script = "return [text('called-patches'), Bokeh.documents.length]"
    for page in (tmp_path / "out" / "a").glob("*.html"):
        log = tmp_path / "net.json"
        called, num = ask(page, script, net_log=log)
        assert "patches" not in called
        assert " of " in called
        assert num == 1
        assert requests_in(log) == []
