import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from wsi_idc.models.novelty import NoveltyModel, map_statistics, recorded_statistics


def small_model() -> NoveltyModel:
    """Return a model of one channel: mean 1 and 2, standard deviation 1 and 0.5."""
    whitening = torch.diag(torch.tensor([1.0, 2.0]))
    quantiles = torch.tensor([1.0, 2.0, 4.0])
    return NoveltyModel("0", torch.tensor([1.0, 2.0]), whitening, quantiles, 0.5, 0.1)


def test_statistics_are_mean_and_standard_deviation_of_each_channel():
    feature_map = torch.tensor([[[[1.0, 3.0], [1.0, 3.0]], [[2.0, 2.0], [2.0, 2.0]]]])
    assert map_statistics(feature_map).tolist() == [[2.0, 2.0, 1.0, 0.0]]


def test_distance_is_the_mahalanobis_distance():
    statistics = torch.tensor([[1.0, 2.0], [4.0, 4.0]])
    assert small_model().distance(statistics).tolist() == [0.0, 5.0]


def test_novelty_is_the_percentile_of_the_distance_on_val():
    distance = np.array([0, 1, 1.5, 2, 3, 4, 9], np.float32)
    novelty = small_model().novelty(distance)
    assert novelty.tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert small_model().novelty(np.array([np.inf, np.nan], np.float32)).tolist() == [1, 1]
    assert novelty.dtype == np.float32


def test_limit_of_a_patient_is_wider_for_few_patches():
    model = small_model()
    assert model.patient_limit(10**9) == pytest.approx(0.75)
    std = math.hypot(0.1, math.sqrt(1 / 12 / 25))
    assert model.patient_limit(25) == pytest.approx(0.5 + 2.5 * std)
    assert model.patient_limit(1) == 1.0
    alike = replace(model, patient_std=0.0)  # as with one val patient
    assert alike.patient_limit(10**9) == pytest.approx(0.75)


def test_each_forward_pass_is_recorded():
    network = nn.Sequential(nn.Identity(), nn.Flatten())
    images = torch.ones(1, 1, 2, 2)
    with recorded_statistics(network, "0") as recorded:
        network(images)
        network(2 * images)
    network(images)
    assert [each.tolist() for each in recorded] == [[[1.0, 0.0]], [[2.0, 0.0]]]
