import numpy as np
import torch

from wsi_idc.runtime.transfer import DeviceTransfer


def test_on_a_cpu_nothing_is_copied():
    link = DeviceTransfer(torch.device("cpu"))
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    tensor = link.send(array).get()
    array[0, 0] = 9
    assert tensor[0, 0] == 9
    result = torch.ones(3)
    (found,) = link.fetch([result]).arrays()
    result[1] = 5
    np.testing.assert_array_equal(found, [1, 5, 1])
