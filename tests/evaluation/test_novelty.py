import numpy as np
import pytest

from tests.evaluations import evaluation_of, patches
from wsi_idc.evaluation.novelty import novelty_bins, novelty_chart

TABLE = patches(("a", "0101", [0.1, 0.9, 0.8, 0.2]), ("b", "01", [0.1, 0.4])).assign(
    novelty=[0.0, 0.1, 0.999, 1.0, 0.2, 0.995]
)


def test_bins_have_error_rate_and_auc():
    table = novelty_bins(TABLE, "probability", 0.5)
    assert table["low"].tolist() == [0, 0.2, 0.99]
    assert table["high"].tolist() == [0.2, 0.4, 1]
    assert table["patches"].tolist() == [2, 1, 3]
    assert table["error_rate"].tolist() == [0, 0, 1]
    assert table["auc"].tolist() == pytest.approx([1, np.nan, 0], nan_ok=True)


def test_the_figure_has_a_bar_per_bin():
    (ax,) = novelty_chart(evaluation_of(TABLE)).axes
    assert [bar.get_height() for bar in ax.patches] == [0, 0, 1]
    assert ax.texts[0].get_text() == "2\nAUC 1.000"
