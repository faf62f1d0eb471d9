import pytest
import torch

from tests.classifiers import make_classifier, random_patches
from wsi_idc.models.cam import logits_and_cam
from wsi_idc.models.feature_map import MappedNetwork, token_grid


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [
        *((196, (0, 14)), (197, (1, 14)), (201, (5, 14)), (4, (0, 2)), (264, (8, 16))),
        *((1, None), (3, None), (220, None)),
    ],
)
def test_tokens_before_the_grid_are_left_out(num_tokens: int, expected: tuple[int, int] | None):
    assert token_grid(num_tokens) == expected


@pytest.mark.slow
def test_a_vision_transformer_of_torchvision_has_the_cam_of_its_last_block():
    classifier = make_classifier("vit_b_16", input_px=224)
    arch, network = classifier.arch, classifier.network
    assert (arch.cam_layer, arch.head, arch.closed_form) == (
        *("feature_map", "encoder.heads.head", False),
    )
    assert isinstance(network, MappedNetwork)
    torch.nn.init.normal_(network.get_submodule(arch.head).weight)
    patches = random_patches(2)
    logits, cam = logits_and_cam(classifier, patches)
    # The slow way: tokens of the last block with a gradient, and the grid without the class token.
    last, kept = network.encoder.encoder.layers[-1], []
    last.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].requires_grad_()))
    for index in range(2):
        with torch.enable_grad():
            output = network.requires_grad_(True)(classifier.preprocess(patches[index : index + 1]))
            (gradient,) = torch.autograd.grad(output[0, 1], kept[-1])
        torch.testing.assert_close(output[0], logits[index], atol=1e-4, rtol=1e-4)
        tokens, weights = kept[-1][0, 1:], gradient[0, 1:].mean(dim=0)
        expected = torch.relu(tokens @ weights).view(14, 14).detach()
        torch.testing.assert_close(cam[index], expected, atol=1e-4 * float(expected.max()), rtol=0)
    assert cam.max() > 0
