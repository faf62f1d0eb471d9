import numpy as np
import torch

from wsi_idc.data.pack import Pack
from wsi_idc.training.patch_source import PatchSource


def test_what_lies_on_the_device_is_what_is_in_the_pack(cohort: Pack):
    rows = np.arange(7, 107, 2)
    asked = np.array([105, 7, 7, 51])
    expected = torch.from_numpy(cohort.patches[asked])
    for resident in (True, False, None):
        source = PatchSource(cohort, rows, torch.device("cpu"), resident=resident)
        assert torch.equal(source.take(asked), expected)


def test_a_cpu_keeps_no_second_copy(cohort: Pack):
    assert PatchSource(cohort, np.arange(5), torch.device("cpu"))._all is None
