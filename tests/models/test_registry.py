import sys
from pathlib import Path

import pytest
import torch

from wsi_idc.core.errors import CheckpointError, MissingPackageError
from wsi_idc.models.architecture import build_empty
from wsi_idc.models.registry import MODEL_NAMES, architecture


def test_a_name_may_have_dashes_or_underscores():
    for dashed in ("efficientnet-b0", "cnn-bn", "squeezenet1-1"):
        assert architecture(dashed) is architecture(dashed.replace("-", "_"))
    assert architecture("efficientnet_b0").name == "efficientnet-b0"
    assert list(MODEL_NAMES) == [
        "cnn",
        "cnn-bn",
        "mobilenet-v2-s16",
        "resnet18",
        "resnet50",
        "efficientnet-b0",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "did you mean resnet18 or"),
        ("mobilnet-v3-small", "did you mean mobilenet_v3_small"),
        ("vgg", "'vgg'; did you mean vgg"),
        (
            "?",
            r"'\?'; give cnn, cnn-bn, mobilenet-v2-s16, resnet18, resnet50, efficientnet-b0 or a ",
        ),
        ("lraspp_mobilenet_v3_large", "did you mean mobilenet_v3_large"),
    ],
)
def test_an_unusable_name_is_refused_in_one_line(name: str, message: str):
    with pytest.raises(CheckpointError, match=message) as caught:
        architecture(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["googlenet", "squeezenet1_1", "mobilenet_v3_small"])
def test_torchvision_networks_give_two_logits_in_both_modes(name: str):
    network = architecture(name).build(2)
    images = torch.rand(2, 3, 64, 64)
    assert network.train()(images).shape == (2, 2)
    assert network.eval()(images).shape == (2, 2)


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "swin_t"])
def test_a_network_on_the_meta_device_has_shapes_and_draws_no_random_number(name: str):
    arch = architecture(name)
    before = torch.get_rng_state()
    network = build_empty(arch.build, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    expected = {name: value.shape for name, value in arch.build(2).state_dict().items()}
    assert {name: value.shape for name, value in network.state_dict().items()} == expected


def test_a_torchvision_for_another_torch_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(MissingPackageError) as caught:
        architecture("resnet18")
    assert str(caught.value) == (
        f"torchvision does not fit torch {torch.__version__} (operator nms does not exist); "
        "install both again, in one command and from the same package index"
    )
    assert architecture("cnn").name == "cnn"  # needs no torchvision
