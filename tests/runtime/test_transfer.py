import numpy as np
import torch

from wsi_idc.runtime.transfer import DeviceTransfer


def test_cpu_transfer_copies_nothing():
    transfer = DeviceTransfer(torch.device("cpu"))
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    tensor = transfer.upload(array).get()
    array[0, 0] = 9
    assert tensor[0, 0] == 9
    result = torch.ones(3)
    (downloaded,) = transfer.download([result]).arrays()
    result[1] = 5
    np.testing.assert_array_equal(downloaded, [1, 5, 1])
