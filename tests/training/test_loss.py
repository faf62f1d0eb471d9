import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsi_idc.training.loss import Loss, Targets, inverse_frequency

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, -1.0], [0.5, 0.5], [3.0, 2.0]])
LABEL = torch.tensor([0, 1, 1, 0, 0])
WEIGHT = torch.tensor([0.7, 1.75])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_weighted_mean_of_torch(smoothing: float):
    loss, targets = Loss(WEIGHT, label_smoothing=smoothing), Targets(LABEL)
    expected = F.cross_entropy(LOGITS, LABEL, weight=WEIGHT, label_smoothing=smoothing)
    torch.testing.assert_close(loss.loss_sum(LOGITS, targets) / loss.normalizer(targets), expected)
    assert loss.loss_sum(LOGITS.bfloat16(), targets).dtype == torch.float32


def test_the_losses_of_parts_add_up():
    loss, targets = Loss(WEIGHT, 0.1, 2.0), Targets(LABEL)
    parts = [slice(0, 2), slice(2, 5)]
    summed = sum(loss.loss_sum(LOGITS[part], targets.take(part)) for part in parts)
    torch.testing.assert_close(summed, loss.loss_sum(LOGITS, targets))


def test_focal_loss_of_one_patch():
    loss = Loss(torch.ones(2), focal_gamma=2.0)
    probability = 1 / (1 + math.exp(2))  # of label 1 at logits (1, -1)
    expected = -((1 - probability) ** 2) * math.log(probability)
    actual = loss.loss_sum(torch.tensor([[1.0, -1.0]]), Targets(torch.tensor([1])))
    assert float(actual) == pytest.approx(expected, rel=1e-6)


def test_mixed_targets_weight_both_losses():
    lam = torch.tensor([0.5, 0.75, 1.0, 0.6, 0.9])
    label_b = LABEL.flip(0)
    loss = Loss(WEIGHT)
    losses, losses_b = (loss._losses(LOGITS, label) for label in (LABEL, label_b))
    targets = Targets(LABEL, label_b, lam)
    expected = (lam * losses + (1 - lam) * losses_b).sum()
    torch.testing.assert_close(loss.loss_sum(LOGITS, targets), expected)
    expected = (lam * WEIGHT[LABEL] + (1 - lam) * WEIGHT[label_b]).sum()
    torch.testing.assert_close(loss.normalizer(targets), expected)
    parts = [loss.normalizer(targets.take(part)) for part in (slice(0, 3), slice(3, 5))]
    torch.testing.assert_close(sum(parts), expected)


def test_class_weights_balance_the_classes():
    assert inverse_frequency(np.array([0, 0, 0, 1])).tolist() == [4 / 6, 2.0]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_focal_loss_of_a_certain_patch_has_a_gradient(gamma: float):
    logits = torch.tensor([[40.0, -40.0]], requires_grad=True)
    Loss(torch.ones(2), focal_gamma=gamma).loss_sum(logits, Targets(torch.tensor([0]))).backward()
    assert torch.isfinite(logits.grad).all()


def test_the_cell_loss_is_the_mean_loss_of_the_cells_of_a_patch():
    torch.manual_seed(0)
    loss, cells = Loss(WEIGHT, label_smoothing=0.1), torch.randn(5, 2, 3, 2)
    expected = sum(
        loss.loss_sum(cells[:, :, row, col], Targets(LABEL)) for row in range(3) for col in range(2)
    )
    torch.testing.assert_close(loss.cell_loss_sum(cells, Targets(LABEL)), expected / 6)


def test_each_mixed_cell_has_its_own_weight():
    torch.manual_seed(0)
    loss, cells, lam = Loss(WEIGHT), torch.randn(5, 2, 2, 2), torch.rand(5, 2, 2)
    label_b = LABEL.flip(0)
    expected = sum(
        loss.loss_sum(cells[:, :, row, col], Targets(LABEL, label_b, lam[:, row, col]))
        for row in range(2)
        for col in range(2)
    )
    actual = loss.cell_loss_sum(cells, Targets(LABEL, label_b, lam))
    torch.testing.assert_close(actual, expected / 4)
