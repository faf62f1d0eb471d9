from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from wsi_idc.data.pack import Pack
from wsi_idc.evaluation import robustness as module
from wsi_idc.evaluation.robustness import UNCHANGED, robustness, robustness_chart
from wsi_idc.inference.predictor import Predictor
from wsi_idc.metrics.classification import auc
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import select_device


def white(patches: np.ndarray) -> np.ndarray:
    return np.full_like(patches, 255)


CHANGES: dict[str, Callable] = {"none": lambda patches: patches, "white": white}


def test_each_change_is_evaluated(
    trained: Checkpoint, cohort: Pack, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "PERTURBATIONS", CHANGES)
    predictor, device_config = Predictor((trained,)), select_device("cpu")
    patients = sorted(trained.patients("test"))
    table = robustness(predictor, cohort, patients, device_config=device_config)
    assert table["change"].tolist() == [UNCHANGED, "none", "white"]
    first, same, changed = table.drop(columns="change").to_dict("records")
    assert same == first
    assert first["novelty_auroc"] == 0.5
    # All white patches have one probability, and are unlike the train patches.
    assert (changed["auc"], changed["called_idc"]) in ((0.5, 0), (0.5, 1))
    assert (changed["novelty_auroc"], changed["cautions"], changed["mean_novelty"]) == (1, 1, 1)
    rows = np.flatnonzero(np.isin(cohort.patient_of, patients))
    parts = list(predictor.predict(cohort, rows, device_config=device_config))
    probability = predictor.aggregate(np.concatenate([part.logit for part in parts])).probability
    assert first["auc"] == auc(cohort.index["label"].to_numpy()[rows], probability)
    assert first["called_idc"] == (probability >= trained.threshold).mean()


def test_without_a_novelty_model_its_columns_are_empty(
    trained: Checkpoint, cohort: Pack, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "PERTURBATIONS", {})
    predictor = Predictor((replace(trained, novelty=None),))
    patients = sorted(trained.patients("test"))
    table = robustness(predictor, cohort, patients, device_config=select_device("cpu"))
    columns = ["mean_novelty", "novelty_auroc", "cautions"]
    assert table[columns].isna().all(axis=None)
    assert len(robustness_chart(table).axes) == 2


def test_the_figure_has_a_panel_per_measure_and_a_row_per_change():
    table = pd.DataFrame(
        {"change": ["a", "b"], "auc": [0.9, 0.5], "sensitivity": [0.8, 0.8]}
        | {"mean_novelty": [0.5, 1.0]}
    )
    axes = robustness_chart(table).axes
    assert [ax.get_title() for ax in axes] == ["AUC", "Sensitivity", "Mean novelty"]
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["a", "b"]
    assert axes[0].collections[-1].get_offsets().tolist() == [[0.9, 1.0], [0.5, 0.0]]
    assert [ax.get_xlim()[0] > 0.4 for ax in axes] == [True, False, False]
    assert all(ax.get_xlim()[1] > 1 for ax in axes)


def test_patches_are_read_once_if_they_fit_in_memory(
    trained: Checkpoint, cohort: Pack, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "PERTURBATIONS", CHANGES)
    predictor, device_config = Predictor((trained,)), select_device("cpu")
    patients, sizes, read = sorted(trained.patients("test")), [], Pack.read
    monkeypatch.setattr(
        Pack, "read", lambda pack, rows: sizes.append(len(rows)) or read(pack, rows)
    )
    options = {"device_config": device_config, "batch_size": 16}
    held = robustness(predictor, cohort, patients, **options)
    num = np.isin(cohort.patient_of, patients).sum()
    assert sizes == [num]
    sizes.clear()
    monkeypatch.setattr(module, "_MAX_HELD_BYTES", 0)
    pd.testing.assert_frame_equal(robustness(predictor, cohort, patients, **options), held)
    assert (sum(sizes), max(sizes)) == (3 * num, 16)
