import math
from pathlib import Path
from typing import Any

import pytest

from wsi_idc.plotting.style import house_style, save_png
from wsi_idc.training.logger import draw_curves


def record(epoch: int) -> dict[str, float]:
    return {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "val_loss": 0.5 + 0.01 * epoch,
        "val_auc": 0.9,
        "val_average_precision": 0.8 - 0.01 * (epoch - 3) ** 2,
        "learning_rate": 1e-3 / epoch,
        "patches_per_second": 200.0,
    }


def draw(history: list[dict], path: Path, **options: Any) -> dict[str, list]:
    """Write the figure and return the points of each curve."""
    with house_style():
        figure = draw_curves(history, **options)
        save_png(figure, path)
    lines = [line for ax in figure.axes for line in ax.lines]
    assert all(line.get_markersize() > 0 for line in lines if len(line.get_xdata()) == 1)
    return {line.get_label(): line.get_xydata().tolist() for line in lines}


@pytest.mark.parametrize("epochs", [1, 2, 30, 200])
def test_curves_of_any_length_are_drawn(epochs: int, tmp_path: Path):
    history = [record(epoch) for epoch in range(1, epochs + 1)]
    curves = draw(history, tmp_path / "curves.png", best_epoch=1)
    keys = ("train_loss", "val_loss", "val_average_precision", "val_auc", "learning_rate")
    for name, key in zip(("train", "val", "AP", "AUC", "learning rate"), keys, strict=True):
        assert curves[name] == [[epoch["epoch"], epoch[key]] for epoch in history]
    before = (tmp_path / "curves.png").read_bytes()
    draw(history, tmp_path / "curves.png", best_epoch=1)
    assert (tmp_path / "curves.png").read_bytes() == before


INFINITE = record(1) | {"val_average_precision": math.nan, "val_loss": math.inf}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], {}),
        ([{"epoch": 1}], {}),
        ([{"epoch": 1, "val_auc": None}, {"epoch": 2, "val_auc": 0.7}], {"AUC": [2]}),
        (
            [INFINITE, record(2)],
            {"train": [1, 2], "val": [2], "AP": [2], "AUC": [1, 2], "learning rate": [1, 2]},
        ),
    ],
)
def test_missing_values_are_not_drawn(history: list[dict], expected: dict, tmp_path: Path):
    curves = draw(history, tmp_path / "curves.png")
    assert {name: [x for x, _ in points] for name, points in curves.items()} == expected
