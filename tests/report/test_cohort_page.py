import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.browser import ask, needs_chromium, requests_in
from tests.report.test_patient_page import assert_closed
from tests.small_maps import EVIL, hand_map
from wsi_idc.maps.cohort import cohort_row
from wsi_idc.plotting.html import content_security_policy
from wsi_idc.report.cohort_page import Card, card_of, cohort_page, patient_card, slides_page


def card(patient: str, **changes: Any) -> Card:
    patient_map = hand_map(patient=patient)
    image = np.full((200, 200, 3), 120, np.uint8)
    return card_of(patient_map, image, cohort_row(patient_map, threshold=0.5) | changes)


def cards() -> list[Card]:
    nan = math.nan
    return [
        card("P10", idc_fraction=0.2, auc=nan, patches=7),
        card("P9", idc_fraction=0.7, auc=0.6, patches=3, role=""),
        card("P100", idc_fraction=0.4, auc=0.9, patches=5),
    ]


def test_page_shows_every_patient_most_idc_first():
    page = assert_closed(cohort_page(cards(), {"bad.h5": "it is no map"}))
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == 2 * ["P9.html", "P100.html", "P10.html"]  # cards and rows of the table
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert [source[:15] for source in sources[:2]] == ["data:image/avif", "data:image/png;"]
    text = " ".join(page.texts)
    assert "it is no map" in text
    assert "Research use only" in text
    # No map has an uncertainty, so there is nothing to sort by.
    by = [value for _, name, value in page.attributes if name == "data-by"]
    columns = ["patient", "patches", "area_mm2", "idc_area_mm2", "idc_fraction", "auc", "dice"]
    assert by == 2 * columns
    assert "at least 0.500" in text
    bare = card_of(hand_map(), None, cohort_row(hand_map(), threshold=0.5))
    assert bare.tissue is None
    assert "no image" in cohort_page([bare], {})


def test_card_of_a_patient_shows_the_slide_with_most_idc():
    slides = [card("P", slide=name, idc_area_mm2=area) for name, area in (("a", 0.1), ("b", 0.3))]
    shown = patient_card({**slides[0].row, "slide": "", "patches": 10}, slides)
    assert (shown.name, shown.link) == ("P", "P.html")
    assert shown.probability is slides[1].probability
    page = assert_closed(slides_page(shown))
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == ["index.html", *2 * ["P/a.html", "P/b.html"]]
    text = " ".join(page.texts)
    assert "2 slides · 10 patches" in " ".join(text.split())
    assert "Patient P: wsi-idc" in text
    slides[1] = card("P", slide="b", checkpoint_sha256="ab")
    shown = patient_card(shown.row, slides)
    for html in (slides_page(shown), cohort_page([shown], {})):
        assert "the maps have 2 combinations" in html


def test_train_patients_are_explained_only_if_there_are_any():
    note = 'The model was trained on the patients marked "train"'
    assert note in cohort_page([card("a", role="train"), card("b", role="test")], {})
    assert note not in cohort_page([card("a", role="val"), card("b", role="test")], {})


def test_areas_have_the_same_digits_in_the_head_and_on_the_cards():
    page = cohort_page([card("a", area_mm2=0.44, idc_area_mm2=0.16)], {})
    assert "<b>0.44</b> mm² of patches · <b>0.16</b> mm² called IDC" in page
    assert "<dd>0.16 mm²</dd><dt>called IDC, of 0.44</dt>" in page
    assert "<b>1</b> patient · <b>5</b> patches" in page


def test_a_card_shows_the_caution_of_its_map():
    page = cohort_page([card("a"), card("b", caution="unlike <the training data>")], {})
    assert page.count('class="caution"') == 1
    assert '<p class="caution">unlike &lt;the training data&gt;</p>' in page


def test_medians_exclude_train_patients():
    three = [card("a", auc=0.7), card("b", auc=0.9), card("c", auc=1.0, role="train")]
    assert "<b>0.800</b> median AUC without train patients" in cohort_page(three, {})
    assert "<b>0.800</b> median AUC ·" in cohort_page(three[:2], {})
    assert "median" not in cohort_page(three[2:], {})


@pytest.mark.parametrize(
    "change", [{"checkpoint_sha256": "ab"}, {"threshold": 0.4}, {"tta": "true"}]
)
def test_maps_of_different_models_have_no_median(change: dict[str, Any]):
    page = cohort_page([card("a", auc=0.7), card("b", auc=0.9, **change)], {})
    assert "the maps have 2 combinations of model, threshold and settings" in page
    assert "median" not in page
    assert "different models" not in cohort_page([card("a", auc=0.7), card("b", auc=0.9)], {})


def test_names_are_escaped_and_links_encoded():
    evil = card(EVIL, role="</script>")
    slashes = card('x"y?#%', role=EVIL)
    page = assert_closed(cohort_page([evil, slashes], {EVIL: "</script>" + EVIL}))
    links = {value for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert links == {"%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E.html", "x%22y%3F%23%25.html"}
    sources = {value[:5] for tag, name, value in page.attributes if (tag, name) == ("img", "src")}
    assert sources == {"data:"}
    assert page.texts.count(EVIL) == 5  # names and roles of card and row, file
    assert card("javascript:alert(1)").link == "javascript%3Aalert%281%29.html"


@needs_chromium
def test_cards_and_table_are_sorted_and_filtered(tmp_path: Path):
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
        "const links = () => [...document.querySelectorAll('#cards > a, tbody > tr')]"
        ".filter((item) => item.offsetParent !== null).map((item) => item.dataset.patient);"
        f"const orders = {[name for name, _ in steps]}.map((name) => {{"
        "document.querySelector(`[data-by=${name}]`).click(); return links(); });"
        "const find = document.getElementById('find'); find.value = 'p10';"
        "find.dispatchEvent(new Event('input')); const found = links(); find.value = '';"
        "const role = document.getElementById('role'); role.value = 'in no split';"
        "role.dispatchEvent(new Event('change')); const shown = text('shown');"
        "document.querySelector('[data-view=table]').click(); await pause(50);"
        "const rows = [...links(), shown, document.getElementById('cards').hidden];"
        "role.value = ''; role.dispatchEvent(new Event('change'));"
        "document.querySelector('th [data-by=patches]').click();"
        "return [orders, found, rows, links()]"
    )
    orders, matches, rows, table = ask(page, script, net_log=log)
    assert orders == [order for _, order in steps]
    assert matches == ["P100", "P10"]
    assert rows == ["P9", "1", True]
    assert table == ["P9", "P100", "P10"]  # in the last direction of the column
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
