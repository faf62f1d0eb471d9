"""Tests of the charts of a pack."""

from tests.packs import block, make_pack
from wsi_idc.explore.charts import class_balance
from wsi_idc.explore.tables import describe


def test_the_classes_of_the_patients_have_a_legend(tmp_path):
    pack = make_pack(tmp_path / "a.h5", block("a", 2, 2, 1) + block("b", 2, 2, 0))
    _, each = class_balance(describe(pack), pack).axes
    assert [text.get_text() for text in each.get_legend().get_texts()] == ["IDC", "non-IDC"]
