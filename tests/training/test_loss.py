import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsi_idc.training.loss import Loss, Targets, inverse_frequency

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, -1.0], [0.5, 0.5], [3.0, 2.0]])
LABEL = torch.tensor([0, 1, 1, 0, 0])
WEIGHT = torch.tensor([0.7, 1.75])


def mean_loss(loss: Loss, labels: Targets) -> torch.Tensor:
    return loss.loss_sum(LOGITS, labels) / loss.normalizer(labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_torchs_weighted_mean(smoothing: float):
    found = mean_loss(Loss(WEIGHT, label_smoothing=smoothing), Targets(LABEL))
    expected = F.cross_entropy(LOGITS, LABEL, weight=WEIGHT, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)


def test_parts_add_up_to_the_whole():
    loss, labels = Loss(WEIGHT, 0.1, 2.0), Targets(LABEL)
    parts = [slice(0, 2), slice(2, 5)]
    summed = sum(loss.loss_sum(LOGITS[part], labels.take(part)) for part in parts)
    torch.testing.assert_close(summed, loss.loss_sum(LOGITS, labels))


def test_focal_loss_of_one_patch():
    loss = Loss(torch.ones(2), focal_gamma=2.0)
    probability = 1 / (1 + math.exp(2))  # of label 1 at logits (1, -1)
    expected = -((1 - probability) ** 2) * math.log(probability)
    found = loss.loss_sum(torch.tensor([[1.0, -1.0]]), Targets(torch.tensor([1])))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_a_blend_has_a_share_of_each_loss():
    share = torch.tensor([0.5, 0.75, 1.0, 0.6, 0.9])
    other = LABEL.flip(0)
    loss = Loss(WEIGHT)
    one, two = (loss._losses(LOGITS, label) for label in (LABEL, other))
    labels = Targets(LABEL, other, share)
    torch.testing.assert_close(
        loss.loss_sum(LOGITS, labels), (share * one + (1 - share) * two).sum()
    )
    expected = (share * WEIGHT[LABEL] + (1 - share) * WEIGHT[other]).sum()
    torch.testing.assert_close(loss.normalizer(labels), expected)
    torch.testing.assert_close(
        loss.normalizer(labels),
        loss.normalizer(labels.take(slice(0, 3))) + loss.normalizer(labels.take(slice(3, 5))),
    )


def test_half_precision_logits_are_summed_in_full():
    found = Loss(WEIGHT).loss_sum(LOGITS.bfloat16(), Targets(LABEL))
    assert found.dtype == torch.float32


def test_class_weights_even_out_the_classes():
    weight = inverse_frequency(np.array([0, 0, 0, 1]))
    assert weight.tolist() == [4 / 6, 2.0]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_of_a_sure_patch_has_a_slope(gamma: float):
    logits = torch.tensor([[40.0, -40.0]], requires_grad=True)
    Loss(torch.ones(2), focal_gamma=gamma).loss_sum(logits, Targets(torch.tensor([0]))).backward()
    assert torch.isfinite(logits.grad).all()
