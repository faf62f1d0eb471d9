from contextlib import contextmanager

import numpy as np
import pytest
import torch

from wsi_idc.data.pack import Pack
from wsi_idc.inference import novelty
from wsi_idc.inference.novelty import fit_novelty
from wsi_idc.inference.predict import predict
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.novelty import NoveltyModel
from wsi_idc.runtime.device import DeviceConfig, select_device


def distances(checkpoint: Checkpoint, model: NoveltyModel, pack: Pack, rows: np.ndarray):
    classifier = checkpoint.build()
    classifier.novelty = model
    parts = predict([classifier], pack, rows, device_config=select_device("cpu"))
    return np.concatenate([part.distance[:, 0] for part in parts])


def test_model_whitens_train_patches_and_ranks_val_patches(trained: Checkpoint, cohort: Pack):
    rows = np.arange(len(cohort))
    train, val = rows[::2], rows[1::2]
    device_config = select_device("cpu")
    model = fit_novelty(trained.build(), cohort, train, val, device_config=device_config)
    num_channels = len(model.mean) // 2
    model.validate(num_channels)
    # The mean square distance of the train patches is the number of statistics, if the covariance
    # is not shrunk; shrinking makes rare directions nearer.
    square = float((distances(trained, model, cohort, train) ** 2).mean())
    assert 0 < square < 1.2 * len(model.mean)
    values = model.novelty(distances(trained, model, cohort, val))
    assert abs(values.mean() - 0.5) < 0.02
    assert (values.min(), values.max()) == (0, 1)
    patients = cohort.patient_of[val]
    means = [values[patients == patient].mean() for patient in np.unique(patients)]
    assert np.isclose(model.patient_mean, np.mean(means), atol=1e-4)
    assert np.isclose(model.patient_std, np.std(means), atol=1e-4)


def test_the_model_is_the_same_with_two_threads(
    trained: Checkpoint, cohort: Pack, two_threads: DeviceConfig
):
    rows = np.arange(len(cohort))
    models = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        classifier = trained.build()
        models.append(
            fit_novelty(classifier, cohort, rows[::2], rows[1::2], device_config=two_threads)
        )
    one, two = models
    torch.testing.assert_close(one.mean, two.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.quantiles, two.quantiles, atol=1e-2, rtol=1e-3)


def test_patches_of_noise_are_novel(trained: Checkpoint):
    model = trained.novelty
    assert model is not None
    classifier = trained.build()
    noise = np.random.default_rng(0).integers(0, 256, (16, 50, 50, 3), dtype=np.uint8)
    with torch.no_grad(), novelty.recorded_statistics(classifier.network, model.layer) as recorded:
        classifier(torch.from_numpy(noise))
    assert model.novelty(model.distance(recorded[0]).numpy()).min() == 1


def test_patches_with_infinite_values_are_left_out(
    trained: Checkpoint, cohort: Pack, monkeypatch: pytest.MonkeyPatch, caplog
):
    record, rows = novelty.recorded_statistics, np.arange(len(cohort))

    @contextmanager
    def with_infinite_values(*arguments):
        with record(*arguments) as recorded:

            class Overflowing(list):
                def pop(self, index):
                    statistics = recorded.pop(index).clone()
                    statistics[0] = torch.inf  # the first patch of each batch
                    return statistics

            yield Overflowing()

    monkeypatch.setattr(novelty, "recorded_statistics", with_infinite_values)
    arguments = (trained.build(), cohort, rows[::2], rows[1::2])
    model = fit_novelty(*arguments, device_config=select_device("cpu"))
    assert model is not None
    model.validate(len(model.mean) // 2)
    assert "values that are not finite" in caplog.text
    monkeypatch.setattr(novelty, "_MIN_PATCHES", len(cohort))
    assert fit_novelty(*arguments, device_config=select_device("cpu")) is None
    assert "--precision fp32" in caplog.text


def test_a_large_role_is_sampled(monkeypatch):
    monkeypatch.setattr(novelty, "MAX_PATCHES", 3)
    rows = novelty.sample_rows(np.arange(100))
    assert len(np.unique(rows)) == 3
    assert np.array_equal(rows, novelty.sample_rows(np.arange(100)))
    assert np.array_equal(novelty.sample_rows(np.arange(3)), np.arange(3))
