"""Architecture: a kind of network. ``build_empty`` builds a network without weight values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wsi_idc.core.constants import NUM_CLASSES

if TYPE_CHECKING:  # torchvision takes two seconds to import
    from torchvision.models import WeightsEnum


OTHER_WEIGHTS = ", or give other --weights"  # end of an error of missing published weights


@dataclass(frozen=True)
class HubWeights:
    """Published weights of a network of timm.

    Attributes:
        mean, std: Mean and standard deviation of each channel, to normalize values in 0..1.
        repository: Repository of the hub, OWNER/NAME; "" if the weights are elsewhere.
        licence: Licence of the weights; None if timm does not state it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    repository: str = ""
    licence: str | None = None


@dataclass(frozen=True)
class Architecture:
    """A kind of network that ends in a feature map and a head.

    Attributes:
        name: Name of the architecture, such as "efficientnet-b0" or "convnext_tiny".
        build: Function that builds a network with random weights for a number of classes.
        cam_layer: Name of the module whose output is the last feature map.
        head: Name of the last layer, which computes the logits.
        closed_form: Whether only average pooling and a linear layer follow the last feature map.
            If so, Grad-CAM needs no gradient.
        input_px: Side in px to which patches are resized; None: patches are not resized.
        imagenet: ImageNet weights of torchvision, or published weights of a network of timm, or
            None.
        unused: Starts of names in published weights that this network does not have.
        prefix: Start of all names of weights that is not in published weights.
        interpolation: Interpolation that resizes patches, "bilinear" or "bicubic".
    """

    name: str
    build: Callable[[int], nn.Module]
    cam_layer: str
    head: str
    closed_form: bool
    input_px: int | None = None
    imagenet: "WeightsEnum | HubWeights | None" = None
    unused: tuple[str, ...] = ()
    prefix: str = ""
    interpolation: str = "bilinear"


_DRAWS = (Tensor.normal_, Tensor.uniform_)


class _NoValues(TorchFunctionMode):
    """Mode of PyTorch in which layers create parameters on a device, without random values."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    # torch.device("meta") would also remove the values of tensors that RegNet's constructor reads.
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        if func in _DRAWS:
            # trunc_normal_ draws again until all values are within its limits, as zeros are.
            return args[0] if args[0].is_meta else args[0].zero_()
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = self.device
        return func(*args, **kwargs)


def num_parameters(arch: Architecture) -> int:
    """Return the number of parameters of a network with two classes."""
    return sum(map(Tensor.numel, build_empty(arch.build, NUM_CLASSES).parameters()))


def build_empty(
    build: Callable[[int], nn.Module], num_classes: int, *, device: str = "meta"
) -> nn.Module:
    """Build a network without weight values; ``load_state`` sets the values later.

    Args:
        build: Function that builds the network for a number of classes.
        num_classes: Number of classes.
        device: Device of the parameters, "meta" or "cpu". On "meta", the parameters take no
            memory. On "cpu", the parameters have arbitrary values or zeros.
    """
    with _NoValues(device):
        return build(num_classes)
