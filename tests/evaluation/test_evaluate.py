from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.small_slides import make_slides
from wsi_idc.core.errors import DataError
from wsi_idc.data.pack import Pack
from wsi_idc.data.slide_cutter import LabelSettings
from wsi_idc.data.slide_pack import prepare_slides
from wsi_idc.evaluation.evaluate import choose_patients, evaluate, evaluation_folder
from wsi_idc.evaluation.results import Evaluation, write_evaluation
from wsi_idc.inference.predictor import Predictor
from wsi_idc.metrics.bootstrap import FEW_PATIENTS
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import select_device
from wsi_idc.slides.manifest import read_manifest
from wsi_idc.slides.tiling import SlideSettings


def run(
    checkpoint: Checkpoint, pack: Pack, patients: list[str] | None = None, **predictor: bool
) -> Evaluation:
    """Evaluate a checkpoint, on its test patients by default."""
    return evaluate(
        Predictor((checkpoint,), **predictor),
        pack,
        patients or sorted(checkpoint.patients("test")),
        split="test",
        device_config=select_device("cpu"),
        batch_size=32,
        num_resamples=20,
    )


@pytest.fixture(scope="module")
def evaluation(trained: Checkpoint, cohort: Pack) -> Evaluation:
    return run(trained, cohort)


@pytest.mark.parametrize(("split", "role"), [("test", "test"), ("val", "val"), ("unseen", "test")])
def test_patients_are_those_of_the_split(trained: Checkpoint, cohort: Pack, split: str, role: str):
    assert choose_patients(Predictor((trained,)), cohort, split) == sorted(trained.patients(role))


@pytest.mark.parametrize("split", ["train", "all"])
def test_training_patients_are_refused(trained: Checkpoint, cohort: Pack, split: str):
    with pytest.raises(DataError, match=r"was trained on 3 of these patients.*--allow-seen"):
        choose_patients(Predictor((trained,)), cohort, split)
    assert len(choose_patients(Predictor((trained,)), cohort, split, allow_seen=True)) >= 3


def test_all_patients_are_evaluated_if_none_is_in_the_split(trained: Checkpoint, pack: Pack):
    predictor = Predictor((trained,))
    for split in ("test", "unseen"):
        assert choose_patients(predictor, pack, split) == pack.patients
    for split in ("val", "train"):
        with pytest.raises(DataError, match="use --split unseen"):
            choose_patients(predictor, pack, split)


def test_a_split_without_patients_in_the_data_is_refused(trained: Checkpoint, cohort: Pack):
    known = replace(trained, split=dict.fromkeys(trained.split, "val"))
    with pytest.raises(DataError, match="all its patients are train or val patients"):
        choose_patients(Predictor((known,)), cohort, "test")
    absent = {p: "train" if role == "test" else role for p, role in trained.split.items()}
    elsewhere = replace(trained, split={**absent, "elsewhere": "test"})
    with pytest.raises(DataError, match="all its patients are train or val patients"):
        choose_patients(Predictor((elsewhere,)), cohort, "test")


def test_without_test_patients_the_unseen_ones_are_evaluated(trained: Checkpoint, cohort: Pack):
    some = {p: role for p, role in trained.split.items() if role != "test"}
    untested, test_patients = replace(trained, split=some), sorted(trained.patients("test"))
    assert choose_patients(Predictor((untested,)), cohort, "test") == test_patients
    note = "a checkpoint has no test patients, so unseen patients are evaluated"
    assert note in run(untested, cohort, test_patients).notes
    assert note not in run(trained, cohort).notes
    # In an ensemble, the test patients of the other checkpoint count.
    other = replace(trained, fingerprint="other")
    assert choose_patients(Predictor((untested, other)), cohort, "test") == test_patients


def test_an_evaluation_of_patients_in_no_split_has_a_note(trained: Checkpoint, cohort: Pack):
    note = "no checkpoint has a patient of these data, so all patients are evaluated"
    assert note in run(replace(trained, split={}), cohort, cohort.patients).notes
    assert note not in run(trained, cohort).notes


def test_an_ensemble_is_evaluated_on_patients_that_no_member_has_seen(
    trained: Checkpoint, cohort: Pack
):
    seen = sorted(trained.patients("test"))[0]
    other = replace(trained, split={**trained.split, seen: "train"}, fingerprint="other")
    predictor = Predictor((trained, other))
    assert choose_patients(predictor, cohort, "test") == sorted(trained.patients("test") - {seen})
    assert seen not in choose_patients(predictor, cohort, "unseen")
    tested = replace(trained, split=dict.fromkeys(trained.split, "test"))
    with pytest.raises(DataError, match="was trained on 4 of these patients"):
        choose_patients(Predictor((tested, other)), cohort, "all")


def test_patches_of_unknown_label_are_left_out_but_smooth_their_neighbors(
    trained: Checkpoint, cohort: Pack
):
    pack = Pack(cohort.path)
    rows = np.flatnonzero(np.isin(pack.patient_of, sorted(trained.patients("test"))))
    pack.index.loc[rows[::2], "label"] = -1
    half = run(trained, pack, smooth=True)
    assert (half.num_unknown, half.num_patches) == (len(rows[::2]), len(rows[1::2]))
    assert f"{half.num_unknown} patches of unknown label left out" in half.notes
    all_known = run(trained, cohort, smooth=True).predictions["probability_smoothed"]
    np.testing.assert_array_equal(half.predictions["probability_smoothed"], all_known[1::2])
    pack.index["label"] = -1
    with pytest.raises(DataError, match="no patch of these patients has a known label"):
        run(trained, pack)


def test_one_class_is_noted(trained: Checkpoint, cohort: Pack):
    benign = Pack(cohort.path)
    benign.index["label"] = 0
    evaluation = run(trained, benign)
    assert np.isnan(evaluation.final.metrics["auc"])
    (few, note, *others) = evaluation.notes
    assert few == FEW_PATIENTS
    assert note == "every label is non-IDC: metrics that need both classes are undefined"
    assert all("temperature" in other for other in others)


@pytest.mark.parametrize(
    ("split", "notes"),
    [
        ("test", []),
        ("val", ["was tuned (epoch, threshold) on 1"]),
        ("all", ["was trained on 3", "was tuned (epoch, threshold) on 1"]),
    ],
)
def test_seen_patients_are_noted(trained: Checkpoint, cohort: Pack, split: str, notes: list[str]):
    patients = choose_patients(Predictor((trained,)), cohort, split, allow_seen=True)
    noted = [note for note in run(trained, cohort, patients).notes if "too good" in note]
    expected = "a checkpoint {} of these patients: the metrics are too good"
    assert noted == [expected.format(note) for note in notes]


def test_a_temperature_that_does_not_help_is_noted(trained: Checkpoint, cohort: Pack):
    neutral = run(replace(trained, temperature=1.0), cohort)
    assert not any("temperature" in note for note in neutral.notes)
    # All probabilities are about 0.5, whatever the label.
    spoiled = run(replace(trained, temperature=99.0), cohort)
    assert spoiled.final.metrics["ece"] > spoiled.ece_uncalibrated
    (note,) = (note for note in spoiled.notes if "temperature" in note)
    assert note.endswith(f"{spoiled.ece_uncalibrated:.4f} without it")


def test_one_patient_has_no_intervals(trained: Checkpoint, cohort: Pack):
    evaluation = run(trained, cohort, sorted(trained.patients("test"))[:1])
    auc = evaluation.patient_summary["auc"]
    assert np.isnan([*evaluation.final.intervals["auc"], auc["low"], auc["high"]]).all()
    assert "with one patient there are no intervals" in evaluation.notes
    assert evaluation.bands is not None


def test_few_patients_are_noted(trained: Checkpoint, cohort: Pack, monkeypatch: pytest.MonkeyPatch):
    patients = choose_patients(Predictor((trained,)), cohort, "all", allow_seen=True)
    assert len(patients) == 6
    note = "with fewer than 10 patients, the 95 % intervals are too narrow"
    assert note in run(trained, cohort, patients).notes
    assert note in run(trained, cohort, patients[:2]).notes
    assert note not in run(trained, cohort, patients[:1]).notes
    monkeypatch.setattr("wsi_idc.metrics.bootstrap.MIN_PATIENTS", 6)
    assert note not in run(trained, cohort, patients).notes


def test_patches_at_all_distances_from_the_border_make_up_all_patches(evaluation: Evaluation):
    counts = [metric_set.num_patches for metric_set in evaluation.by_border.values()]
    assert list(evaluation.by_border) == [0, 1, 2]
    assert sum(counts) == evaluation.num_patches
    assert evaluation.patients["border0_patches"].sum() == counts[0]
    mean_auc = evaluation.patients["auc"].mean()
    assert evaluation.patient_summary["auc"]["mean"] == pytest.approx(mean_auc)


def test_smoothed_probabilities_are_final_and_raw_metrics_are_kept(
    trained: Checkpoint, cohort: Pack, evaluation: Evaluation
):
    smoothed = run(trained, cohort, smooth=True)
    pd.testing.assert_series_equal(
        evaluation.predictions["probability"], smoothed.predictions["probability"]
    )
    assert smoothed.final.column == "probability_smoothed"
    assert smoothed.final.threshold == trained.smoothing.threshold
    assert smoothed.final.metrics["auc"] != evaluation.final.metrics["auc"]
    assert smoothed.raw.metrics == evaluation.final.metrics
    assert smoothed.as_dict()["unsmoothed"] == evaluation.final.as_dict()
    assert evaluation.raw is None
    assert (evaluation.record["precision"], evaluation.record["num_resamples"]) == ("fp32", 20)


def test_several_views_give_an_uncertainty(
    trained: Checkpoint, cohort: Pack, evaluation: Evaluation
):
    assert run(trained, cohort, tta=True).predictions["uncertainty"].between(0, 0.5).all()
    assert "uncertainty" not in evaluation.predictions


def test_each_kind_of_evaluation_has_its_own_folder(trained: Checkpoint, tmp_path: Path):
    folders = [
        evaluation_folder(Predictor((trained,), tta=tta, smooth=smooth), "test")
        for tta in (False, True)
        for smooth in (False, True)
    ]
    assert {path.parent for path in folders} == {trained.source.parent}
    names = ["eval-test", "eval-test-smooth", "eval-test-tta", "eval-test-tta-smooth"]
    assert [path.name for path in folders] == names
    a, b = (replace(trained, source=tmp_path / f"{name}.pt", fingerprint=name) for name in "ab")
    assert evaluation_folder(Predictor((a,)), "val") == tmp_path / "a-eval-val"
    assert evaluation_folder(Predictor((b,)), "val") == tmp_path / "b-eval-val"
    assert evaluation_folder(Predictor((a, b)), "val").parent == Path("eval")


def test_a_pack_of_slides_has_a_table_of_slides(trained: Checkpoint, tmp_path: Path):
    folder = make_slides(tmp_path)
    report = prepare_slides(
        read_manifest(folder / "slides" / "slides.csv"),
        tmp_path / "a.h5",
        settings=SlideSettings(),
        labels=LabelSettings(folder=folder / "outlines", unannotated="non-IDC"),
        patch_px=50,
        mpp=4.0,
    )
    pack = Pack(report.pack)
    moved = "slides of the training may be evaluated here"
    known = {"data_fingerprint": pack.info.source_fingerprint}
    for changes, is_noted in (
        ({}, False),
        ({"split": {"P": "test"}}, True),
        ({"split": {"P": "test"}, "provenance": known}, False),
    ):
        notes = run(replace(trained, **changes), pack, ["P", "Q"]).notes
        assert any(moved in note for note in notes) == is_noted
    evaluation = run(trained, pack, ["P", "Q"])
    assert evaluation.patients["patches"].tolist() == [4, 2]
    slides = evaluation.slides
    assert slides[["patient", "slide"]].to_numpy().tolist() == [
        ["P", "one"],
        ["P", "two"],
        ["Q", "three"],
    ]
    assert slides["patches"].tolist() == [3, 1, 2]
    assert slides["area_true"].tolist() == pytest.approx([1 / 3, 0, 1])
    predictions = evaluation.predictions
    assert predictions["slide"].tolist() == ["one", "one", "one", "two", "three", "three"]
    # The slides are separate grids: the patch of IDC of slide one has no neighbor on slide two.
    assert predictions["border_distance"].tolist()[3] == 2
    write_evaluation(evaluation, tmp_path)
    assert (tmp_path / "slides.csv").read_text().splitlines()[1].startswith("P,one,3,")
