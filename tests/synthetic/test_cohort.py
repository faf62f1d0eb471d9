import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from wsi_idc.core.errors import BusyError, WsiIdcError
from wsi_idc.core.locks import locked
from wsi_idc.synthetic.cohort import CohortSummary, write_cohort
from wsi_idc.synthetic.tissue import SynthSlide, draw_slide

NAME = re.compile(r"(S\d{4})_idx5_x(\d+)_y(\d+)_class([01])\.png")


def read_tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def read_rgb(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CohortSummary]:
    root = tmp_path_factory.mktemp("synth") / "tree"
    return root, write_cohort(root, num_patients=12, patches_per_patient=60, seed=3)


@pytest.fixture(scope="module")
def patches(cohort) -> tuple[list[np.ndarray], np.ndarray]:
    paths = sorted(cohort[0].glob("*/*/*.png"))
    return [read_rgb(p) for p in paths], np.array([int(p.parent.name) for p in paths])


def test_same_arguments_give_the_same_pixels_whatever_was_drawn_before():
    first = draw_slide("S0001", seed=5, height_px=300, width_px=333)
    draw_slide("S0002", seed=5, height_px=300, width_px=333)
    np.random.seed(1)
    again = draw_slide("S0001", seed=5, height_px=300, width_px=333)
    assert first.rgb.tobytes() == again.rgb.tobytes()
    assert first.idc.tobytes() == again.idc.tobytes()
    assert first.tissue.tobytes() == again.tissue.tobytes()
    for patient, seed in (("S0002", 5), ("S0001", 6)):
        other = draw_slide(patient, seed=seed, height_px=300, width_px=333)
        assert (first.rgb != other.rgb).mean() > 0.5


def test_background_is_bright_and_tissue_is_stained():
    slide = draw_slide("S0001", seed=0, height_px=601, width_px=617)
    assert (slide.rgb.shape, slide.rgb.dtype) == ((601, 617, 3), np.dtype(np.uint8))
    for mask in (slide.idc, slide.tissue):
        assert (mask.shape, mask.dtype) == ((601, 617), np.dtype(bool))
    assert slide.rgb[~slide.tissue].mean() > 215
    assert slide.rgb[slide.tissue].mean() < 190


def test_a_cohort_is_the_same_bytes_twice_and_a_prefix_of_a_larger_one(tmp_path):
    for name, num in [("a", 2), ("b", 2), ("c", 3)]:
        write_cohort(tmp_path / name, num_patients=num, patches_per_patient=40, seed=9)
    two, three = read_tree(tmp_path / "a"), read_tree(tmp_path / "c")
    assert two == read_tree(tmp_path / "b")
    assert two == {name: data for name, data in three.items() if not name.startswith("S0003")}


def test_layout_and_counts(cohort):
    root, summary = cohort
    assert sorted(p.name for p in root.iterdir()) == [f"S{i:04d}" for i in range(1, 13)]
    files = [p for p in root.rglob("*") if p.is_file()]
    num_edge = 0
    for path in files:
        match = NAME.fullmatch(path.name)
        assert match is not None
        assert path.parent == root / match[1] / match[4]
        assert int(match[2]) % 50 == 1
        assert int(match[3]) % 50 == 1
        num_edge += read_rgb(path).shape != (50, 50, 3)
    num_idc = sum(p.parent.name == "1" for p in files)
    assert summary == CohortSummary(12, len(files), num_idc, num_edge)


def test_number_of_patches_is_near_the_given_one(cohort):
    counts = [len(list(patient.rglob("*.png"))) for patient in sorted(cohort[0].iterdir())]
    assert np.mean(counts) == pytest.approx(60, rel=0.15)
    assert counts == pytest.approx([60] * 12, rel=0.45)


def test_patches_are_cut_from_the_slide_and_labelled_by_its_truth(cohort, monkeypatch, tmp_path):
    slides: list[SynthSlide] = []

    def remember(patient: str, **kwargs: int) -> SynthSlide:
        slides.append(draw_slide(patient, **kwargs))
        return slides[-1]

    monkeypatch.setattr("wsi_idc.synthetic.cohort.draw_slide", remember)
    write_cohort(tmp_path / "tree", num_patients=2, patches_per_patient=60, seed=3)
    for slide in slides:
        left_out = slide.tissue.copy()
        for path in (cohort[0] / slide.patient).glob("*/*.png"):
            match = NAME.fullmatch(path.name)
            assert match is not None
            left, top = int(match[2]) - 1, int(match[3]) - 1
            where = np.s_[top : top + 50, left : left + 50]
            np.testing.assert_array_equal(read_rgb(path), slide.rgb[where])
            tissue = slide.tissue[where]
            assert tissue.mean() >= 0.06
            assert int(match[4]) == int(2 * (slide.idc[where] & tissue).sum() >= tissue.sum())
            left_out[where] = False
        for top in range(0, left_out.shape[0], 50):
            for left in range(0, left_out.shape[1], 50):
                assert left_out[top : top + 50, left : left + 50].mean() < 0.06


def test_background_patches_are_left_out_but_some_nearly_blank_ones_stay(patches):
    brightness = np.array([patch.mean() for patch in patches[0]])
    assert brightness.max() < 238
    assert 0 < (brightness > 220).mean() < 0.1


def test_both_classes_in_every_patient(cohort):
    labels = [[path.parent.name for path in p.glob("*/*.png")] for p in cohort[0].iterdir()]
    fractions = [own.count("1") / len(own) for own in labels]
    assert min(fractions) > 0.03
    assert max(fractions) < 0.75
    assert max(fractions) - min(fractions) > 0.2


def test_some_patients_have_edge_patches(cohort):
    root, summary = cohort
    shapes = {p: [read_rgb(f).shape for f in p.glob("*/*.png")] for p in root.iterdir()}
    with_edge = [p for p, found in shapes.items() if set(found) != {(50, 50, 3)}]
    assert 0 < len(with_edge) < 12
    assert 0 < summary.edge_patches < 0.2 * summary.patches


def test_mean_colour_does_not_separate_the_classes_but_texture_differs(patches):
    images, label = patches
    aucs = [roc_auc_score(label, [-im[..., c].mean() for im in images]) for c in range(3)]
    assert max(aucs) < 0.9
    assert min(aucs) > 0.6
    # Free of colour by construction: the share of a patch's own contrast that is finer than 2 px.
    red = [im[..., 0].astype(np.float32) for im in images]
    fine = np.array([(r - cv2.GaussianBlur(r, (0, 0), 2)).std() / r.std() for r in red])
    assert roc_auc_score(label, fine) > 0.65


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WsiIdcError, match=r"not an empty folder.*give another folder$") as caught:
        write_cohort(tmp_path, num_patients=1, patches_per_patient=40, seed=0)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read_tree(tmp_path) == {"notes.txt": b"mine"}


def test_the_working_folder_can_be_drawn_into(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()  # an empty folder may be used
    monkeypatch.chdir(folder)
    summary = write_cohort(Path(), num_patients=1, patches_per_patient=40, seed=0)
    assert len(list(folder.rglob("*.png"))) == summary.patches
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_two_processes_do_not_draw_in_one_folder(tmp_path):
    with (
        locked(tmp_path / ".tree.lock.partial", what=tmp_path),
        pytest.raises(BusyError, match="another process"),
    ):
        write_cohort(tmp_path / "tree", num_patients=1, patches_per_patient=40, seed=0)


@pytest.mark.parametrize("wrong", [{"num_patients": 0}, {"patches_per_patient": 39}])
def test_numbers_out_of_range_are_a_mistake_of_the_caller(tmp_path, wrong: dict[str, int]):
    numbers = {"num_patients": 1, "patches_per_patient": 40} | wrong
    with pytest.raises(ValueError):
        write_cohort(tmp_path / "tree", **numbers, seed=0)
    assert not (tmp_path / "tree").exists()
    with pytest.raises(ValueError, match="249 px"):
        draw_slide("S0001", seed=0, height_px=249, width_px=400)
