import sys

import pytest
from torch.utils.data import DataLoader

from wsi_idc.bench.baseline import worker_options


@pytest.mark.skipif(sys.platform != "linux", reason="other systems start workers in their own way")
def test_workers_are_forked_on_every_python():
    loader: DataLoader = DataLoader([0], **worker_options(2))
    assert loader.multiprocessing_context.get_start_method() == "fork"
    assert next(iter(DataLoader([0], **worker_options(0)))).tolist() == [0]
