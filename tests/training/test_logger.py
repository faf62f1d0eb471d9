import math

import numpy as np
import pytest
from PIL import Image

from wsi_idc.training.logger import plot_curves

WHITE = (255, 255, 255)
TRAIN_LOSS, VAL_SCORE = (47, 109, 179), (194, 65, 12)


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


def read_pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def count(pixels: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((pixels == color).all(axis=-1).sum())


@pytest.mark.parametrize("epochs", [1, 2, 30, 200])
def test_curves_of_any_length_are_drawn(epochs, tmp_path):
    history = [record(epoch) for epoch in range(1, epochs + 1)]
    plot_curves(history, tmp_path / "curves.png", best_epoch=1)
    pixels = read_pixels(tmp_path / "curves.png")
    third = pixels.shape[1] // 3
    assert count(pixels[:, :third], TRAIN_LOSS) > 20
    assert count(pixels[:, third : 2 * third], VAL_SCORE) > 20
    assert list(tmp_path.iterdir()) == [tmp_path / "curves.png"]


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"epoch": 1}],
        [{"epoch": 1, "val_auc": None}, {"epoch": 2, "val_auc": 0.7}],
        [record(1) | {"val_average_precision": math.nan, "val_loss": math.inf}, record(2)],
    ],
)
def test_missing_values_are_not_drawn(history, tmp_path):
    plot_curves(history, tmp_path / "curves.png")
    assert count(read_pixels(tmp_path / "curves.png"), WHITE) > 1000


def test_equal_histories_give_equal_files(tmp_path):
    path = tmp_path / "curves.png"
    plot_curves([record(1), record(2)], path)
    before = path.read_bytes()
    plot_curves([record(1)], path)
    assert path.read_bytes() != before
    plot_curves([record(1), record(2)], path)
    assert path.read_bytes() == before
