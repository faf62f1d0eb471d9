from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.packs import Cell, make_pack
from wsi_idc.core.errors import DataError
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation import cam_quality as module
from wsi_idc.evaluation.cam_quality import FRACTIONS, cam_quality, cam_quality_chart
from wsi_idc.inference.predict import RawPrediction
from wsi_idc.inference.predictor import Predictor
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import select_device

SIDE = 50


def green_px(patches: np.ndarray) -> RawPrediction:
    """Predict log odds that are the number of green px; the CAM has the green px of each cell."""
    is_green = (patches == (0, 255, 0)).all(axis=3).astype(np.float32)
    cam = is_green.reshape(-1, 5, SIDE // 5, 5, SIDE // 5).mean(axis=(2, 4))
    odds = is_green.sum(axis=(1, 2))
    return RawPrediction(np.stack([0 * odds, odds], axis=1)[:, None], cam)


def test_a_faithful_cam_lowers_the_log_odds_by_the_marked_pixels():
    patch = np.full((1, SIDE, SIDE, 3), 200, np.uint8)
    patch[0, :20, :25] = (0, 255, 0)  # 500 px, a fifth
    prediction = green_px(patch)
    score = np.zeros((1, SIDE, SIDE), np.float32)
    score[0, :20, :25] = 1
    scores = {"top": score, "random": 1 - score}
    curve = module._falls(green_px, patch, np.float32([500]), scores)
    assert curve["fraction"].tolist() == list(FRACTIONS)
    assert curve["top"].tolist() == [125, 250, 500, 500, 500]
    assert curve["random"].tolist() == [0, 0, 0, 0, 0]
    assert module._flip_stability(green_px, patch, prediction.cam) == 1


def test_rim_and_correlation():
    cam = np.ones((2, 4, 4), np.float32)
    assert module._rim_excess(cam) == 0
    cam[:, 0] = 4  # 4 of 12 outer cells
    assert module._rim_excess(cam) == 1
    assert np.isnan(module._rim_excess(np.ones((1, 2, 2), np.float32)))
    row = np.float32([[[1, 2]], [[1, 1]]])
    assert module._correlation(row, -row)[0] == -1
    assert np.isnan(module._correlation(row, row)[1])


def test_a_model_is_measured_on_drawn_patches(trained: Checkpoint, cohort: Pack):
    patients = sorted(trained.patients("test"))
    options = {"device_config": select_device("cpu"), "num_patches": 6}
    predictor = Predictor((trained,))
    quality = cam_quality(predictor, cohort, patients, **options)
    assert (quality.num_idc, quality.num_other) == (6, 6)
    assert quality.method == "gradcam at the last feature map"
    assert quality.area == pytest.approx((quality.curve["top"] - quality.curve["random"]).mean())
    assert quality.fall == pytest.approx(float(quality.curve.eval("top - random")[2]))
    assert -1 <= quality.flip_stability <= 1
    again = cam_quality(replace(predictor, tta=True), cohort, patients, **options)
    pd.testing.assert_frame_equal(again.curve, quality.curve)
    assert quality.as_dict()["curve"][0].keys() == {"fraction", "top", "random"}
    assert len(cam_quality_chart(quality).axes[0].lines) == 3


def test_without_idc_patches_the_error_names_the_option(trained: Checkpoint, cohort: Pack):
    with pytest.raises(DataError, match="--cam"):
        cam_quality(Predictor((trained,)), cohort, [], device_config=select_device("cpu"))


def test_idc_patches_need_no_other_patches(trained: Checkpoint, cohort: Pack, tmp_path: Path):
    row = int(np.flatnonzero(cohort.index["label"] == 1)[0])
    pack = make_pack(tmp_path / "idc.h5", [Cell("A", 0, 0, 1, cohort.read(np.array([row]))[0])])
    quality = cam_quality(Predictor((trained,)), pack, ["A"], device_config=select_device("cpu"))
    assert (quality.num_idc, quality.num_other) == (1, 0)
    assert quality.as_dict()["other_brightness"] is None


def test_the_views_are_undone():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    for view, inverse in enumerate(module.INVERSE_DIHEDRAL):
        assert torch.equal(module._turn(module._turn(images, view), inverse), images)
