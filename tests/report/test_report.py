import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.report.browser import ask, needs_chromium, requests_in
from tests.report.test_patient_page import assert_closed
from tests.small_maps import EVIL, hand_map, write_hand_map
from wsi_idc.core.errors import MapError, WsiIdcError
from wsi_idc.maps.cohort import cohort_row
from wsi_idc.maps.map_reader import map_paths
from wsi_idc.plotting.html import content_security_policy
from wsi_idc.report.cohort_page import Card, card_of, cohort_page
from wsi_idc.report.report import build_report


def test_report_has_a_page_a_patient_and_an_index(tmp_path: Path):
    maps, out = tmp_path / "maps", tmp_path / "report"
    for patient in ("P1", EVIL, "index", "INDEX"):
        write_hand_map(maps, patient=patient)
    (maps / "bad.h5").write_text("no map")
    report = build_report(map_paths(maps), out, tables=maps)
    names = {path.name for path in out.iterdir()}
    assert names == {"P1.html", f"{EVIL}.html", "index.html"}
    assert report.pages == {name: out / f"{name}.html" for name in ("P1", EVIL)}
    assert {path.name for path in report.failed} == {"bad.h5", "index.h5", "INDEX.h5"}
    assert "would replace the cohort's" in report.failed[maps / "index.h5"]
    index = (out / "index.html").read_text()
    assert "Maps without a page: 3" in index
    assert pd.read_csv(maps / "cohort.csv")["patient"].tolist() == [EVIL, "P1"]
    assert report.hdf5 == maps / "cohort.h5"
    again = build_report(map_paths(maps), out, tables=maps, threshold=0.85)
    assert again.pages == report.pages
    assert pd.read_csv(maps / "cohort.csv")["idc_fraction"].tolist() == [0.2, 0.2]


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
        maps / "P1.h5": f"{mine} is of something else and would be lost; give another --out"
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


def card(patient: str, **changes: Any) -> Card:
    patient_map = hand_map(patient=patient)
    image = np.full((200, 200, 3), 120, np.uint8)
    return card_of(patient_map, image, cohort_row(patient_map, threshold=0.5) | changes)


def cards() -> list[Card]:
    nan = math.nan
    return [
        card("P10", idc_fraction=0.2, auc=nan, patches=7),
        card("P9", idc_fraction=0.7, auc=0.6, patches=3),
        card("P100", idc_fraction=0.4, auc=0.9, patches=5),
    ]


def test_page_shows_every_patient_most_idc_first():
    page = assert_closed(cohort_page(cards(), {"bad.h5": "it is no map"}))
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == ["P9.html", "P100.html", "P10.html"]
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert [source[:15] for source in sources[:2]] == ["data:image/jpeg", "data:image/png;"]
    text = " ".join(page.texts)
    assert "it is no map" in text
    assert "Research use only" in text
    # No map has an uncertainty, so there is nothing to sort by.
    by = [value for _, name, value in page.attributes if name == "data-by"]
    assert by == ["idc_fraction", "auc", "patches", "patient"]
    bare = card_of(hand_map(), None, cohort_row(hand_map(), threshold=0.5))
    assert bare.tissue is None
    assert "no image" in cohort_page([bare], {})


def test_medians_exclude_train_patients():
    three = [card("a", auc=0.7), card("b", auc=0.9), card("c", auc=1.0, role="train")]
    assert "<b>0.800</b> median AUC without train patients" in cohort_page(three, {})
    assert "<b>0.800</b> median AUC ·" in cohort_page(three[:2], {})
    assert "median" not in cohort_page(three[2:], {})


def test_names_are_escaped_and_links_encoded():
    evil = card(EVIL, role="</script>")
    slashes = card('x"y?#%', role=EVIL)
    page = assert_closed(cohort_page([evil, slashes], {EVIL: "</script>" + EVIL}))
    links = {value for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert links == {"%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E.html", "x%22y%3F%23%25.html"}
    sources = {value[:5] for tag, name, value in page.attributes if (tag, name) == ("img", "src")}
    assert sources == {"data:"}
    assert page.texts.count(EVIL) == 3  # heading, role, file
    assert card("javascript:alert(1)").link == "javascript%3Aalert%281%29.html"


@needs_chromium
def test_buttons_sort_and_search_filters_the_cards(tmp_path: Path):
    page, log = tmp_path / "index.html", tmp_path / "net.json"
    page.write_text(cohort_page(cards(), {}))
    steps = [
        ("patches", ["P10", "P100", "P9"]),
        ("patches", ["P9", "P100", "P10"]),
        ("auc", ["P9", "P100", "P10"]),
        ("auc", ["P100", "P9", "P10"]),
        ("patient", ["P9", "P10", "P100"]),
        ("idc_fraction", ["P9", "P100", "P10"]),
    ]
    script = (
        "const links = () => [...document.querySelectorAll('#cards > a')]"
        ".filter((a) => a.offsetParent !== null).map((a) => a.dataset.patient);"
        f"const orders = {[name for name, _ in steps]}.map((name) => {{"
        "document.querySelector(`[data-by=${name}]`).click(); return links(); });"
        "const find = document.getElementById('find'); find.value = 'p10';"
        "find.dispatchEvent(new Event('input')); return [orders, links()]"
    )
    orders, matches = ask(page, script, net_log=log)
    assert orders == [order for _, order in steps]
    assert matches == ["P100", "P10"]
    assert requests_in(log) == []


@needs_chromium
def test_request_of_a_page_is_detected(tmp_path: Path):
    page, log = tmp_path / "leak.html", tmp_path / "net.json"
    page.write_text("<body><img src='http://example.invalid/a.png'></body>")
    assert ask(page, "await pause(300); return 1", net_log=log) == 1
    assert requests_in(log) == ["http://example.invalid/a.png"]
    policy = content_security_policy("")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page.write_text(f"{policy}<body><img src='http://example.invalid/a.png'></body>")
    assert ask(page, "await pause(300); return 2", net_log=log) == 2
    assert requests_in(log) == []
