import numpy as np
import torch

from wsi_idc.data.pack import Pack
from wsi_idc.inference.features import feature_extractor
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import DeviceConfig


def test_features_are_the_input_of_the_last_layer_also_with_two_threads(
    trained: Checkpoint, cohort: Pack, two_threads: DeviceConfig
):
    classifier, rows = trained.build().eval(), np.arange(150) % len(cohort)
    expected: list[torch.Tensor] = []
    head = classifier.network.get_submodule(classifier.arch.head)
    hook = head.register_forward_pre_hook(lambda _, inputs: expected.append(inputs[0]))
    with torch.inference_mode():
        classifier(torch.from_numpy(cohort.patches[rows]))
    hook.remove()
    batches = np.split(rows, [64, 128])
    with feature_extractor(classifier, device_config=two_threads) as extract:
        parts = [part.features for part in extract(batches, cohort.read)]
    assert [len(part) for part in parts] == [64, 64, 22]
    np.testing.assert_allclose(np.concatenate(parts), expected[0].flatten(1), atol=1e-4)
