import pytest
import torch
from torch.nn import functional as F

from wsi_idc.models.convolution import ReplicatePaddedConv2d


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 1, 1), (5, 2, 4), (1, 1, 2)])
def test_padding_repeats_the_edge_also_in_compiled_code(kernel: int, stride: int, groups: int):
    torch.manual_seed(0)
    layer = ReplicatePaddedConv2d(4, 8, kernel, stride=stride, groups=groups)
    x = torch.rand(2, 4, 9, 7)
    padded = F.pad(x, (kernel // 2,) * 4, mode="replicate")
    expected = F.conv2d(padded, layer.weight, layer.bias, stride, groups=groups)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x), expected)
