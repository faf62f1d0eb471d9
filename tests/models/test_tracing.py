import pytest
import torch
from torch import Tensor, nn

from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.registry import ARCHITECTURES, architecture
from wsi_idc.models.tracing import Layers, build_on_meta, find_cam_and_head


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_the_registry_declares_is_what_is_found(name: str):
    arch = ARCHITECTURES[name]
    assert find_cam_and_head(name, arch.build) == Layers(
        arch.cam_layer, arch.head, arch.closed_form
    )


class Small(nn.Module):
    """A convolution, then what is asked for, then pooling and a head."""

    def __init__(self, num_classes: int, *, after: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 8, stride=8)
        self.after = after
        self.fc = nn.Linear(6, num_classes)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.stem(x))
        return self.fc(x.mean(dim=(2, 3)) * self.scale)


@pytest.mark.parametrize(
    ("after", "scale", "expected"),
    [
        (nn.ReLU(), 1.0, Layers("after", "fc", True)),
        (nn.ReLU(), 2.0, Layers("after", "fc", False)),
        (nn.MaxPool2d(2), 1.0, Layers("stem", "fc", False)),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), 1.0, Layers("after.0", "fc", False)),
        (nn.Sequential(nn.ReLU(), nn.Dropout()), 1.0, Layers("after", "fc", True)),
        (nn.AdaptiveAvgPool2d(1), 1.0, Layers("stem", "fc", True)),
    ],
)
def test_the_map_is_the_last_before_any_pooling(after: nn.Module, scale: float, expected: Layers):
    assert find_cam_and_head("small", lambda n: Small(n, after=after, scale=scale)) == expected


def test_tokens_are_no_map():
    class Tokens(Small):
        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).transpose(1, 2)
            return self.fc(self.after(tokens).mean(dim=1))

    with pytest.raises(CheckpointError, match="no convolutional feature map at its end") as caught:
        find_cam_and_head("tokens", lambda n: Tokens(n, after=nn.LayerNorm(6)))
    assert "\n" not in str(caught.value)


def test_a_skeleton_has_shapes_and_draws_no_random_number():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    arch = architecture("resnet18")
    network = build_on_meta(arch.build, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    expected = {name: value.shape for name, value in arch.build(2).state_dict().items()}
    assert {name: value.shape for name, value in network.state_dict().items()} == expected


def test_looking_a_model_up_draws_no_random_number():
    before = torch.get_rng_state()
    architecture("shufflenet_v2_x0_5")
    assert torch.equal(torch.get_rng_state(), before)
