import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import click
import h5py
import numpy as np
import pandas as pd
import pytest

from tests.trees import make_tree, save_png
from wsi_idc.cli.main import group, run
from wsi_idc.data.pack import Pack
from wsi_idc.maps.cohort_file import write_cohort_h5
from wsi_idc.models.checkpoint import Checkpoint


@pytest.fixture
def work(tmp_path: Path, cohort: Pack, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with the synthetic pack in data/."""
    folder = tmp_path / "work"
    (folder / "data").mkdir(parents=True)
    shutil.copy(cohort.path, folder / "data")
    monkeypatch.chdir(folder)
    return folder


class Said:
    """What a command said: exit code, standard output, standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
        words = [str(argument) for argument in arguments]
        capsys.readouterr()
        self.code = run(lambda: group.main(words, prog_name="wsi-idc", standalone_mode=False))
        self.out, self.err = capsys.readouterr()

    @property
    def error(self) -> str:
        """The one line that begins with Error."""
        lines = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


def program(*arguments: object, **options: object) -> "subprocess.Popen[str]":
    """Start the real program in a process of its own."""
    words = [sys.executable, "-m", "wsi_idc", *map(str, arguments)]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_as_a_module_it_has_the_same_name():
    process = program("info", "--nonsense")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said.startswith("Usage: wsi-idc info [OPTIONS]")


def test_help_imports_nothing_heavy_and_fetches_nothing():
    code = (
        "import sys; from wsi_idc.cli import group\n"
        "try: group.main(['--help'], prog_name='wsi-idc')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'h5py', 'cv2', 'tqdm', 'matplotlib', 'sklearn'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or None)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "Research use only" in found.stdout


@pytest.mark.parametrize("name", sorted(group.commands))
def test_each_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]):
    said = Said(capsys, name, "--help")
    assert said.code == 0
    assert re.search(r"Examples?:\n +wsi-idc " + name, said.out)


def test_from_a_tree_to_a_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tree = make_tree(tmp_path / "tree")
    bad = next(tree.rglob("*.png"))
    bad.write_text("no picture")
    out = tmp_path / "data" / "idc.h5"
    said = Said(capsys, "prepare", tree, "--out", out)
    assert said.code == 0
    assert "left out: 1 x unreadable" in said.out
    assert str(bad.relative_to(tree)) in said.out
    assert bad.name in (tmp_path / "data" / "rejected.csv").read_text()
    strict = Said(capsys, "prepare", tree, "--out", out, "--strict", "--json")
    assert strict.code == 1
    assert "1 files were left out (--strict)" in strict.error
    assert json.loads(strict.out)["rejected"][0]["path"] == str(bad.relative_to(tree))


def test_from_a_zip_to_a_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tree = make_tree(tmp_path / "tree")
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", tree)
    said = Said(capsys, "prepare", archive, "--out", tmp_path / "idc.h5", "--json")
    assert said.code == 0
    assert json.loads(said.out)["num_patches"] == 7
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("../evil.png", b"x")
    said = Said(capsys, "prepare", archive, "--out", tmp_path / "evil.h5")
    assert said.code == 1
    assert "refused, it holds a file named '../evil.png'" in said.error
    assert not (tmp_path / "evil.h5").exists()


def test_train_eval_map_render_info(work: Path, capsys: pytest.CaptureFixture[str]):
    train = ["train", "--model", "cnn-bn", "--epochs", 1, "--batch-size", 16]
    train += ["--split", "ratio:50/25/25"]
    said = Said(capsys, *train)
    assert said.code == 0, said.err
    assert "split: ratio:50/25/25" in said.err
    assert "settings: model cnn-bn" in said.err
    used = r"\d+ patches/s, \d+% of the time waiting for data, \d+% in the network\n"
    assert re.search(r"epoch 1/1: train loss .+, " + used, said.err)
    (folder,) = (work / "runs").iterdir()
    (epoch,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert 0 < epoch["network_share"] <= 1
    assert 0 <= epoch["data_wait_share"] < 1
    assert str(folder.relative_to(work) / "best.pt") in said.out
    again = Said(capsys, *train, "--json")
    result = json.loads(again.out)
    assert result["was_finished"] is True
    assert result["threshold_rule"] == "largest F1 on val"
    assert 0 < result["threshold"] < 1
    assert {"temperature", "smoothing", "best_epoch", "auc"} <= set(result)

    said = Said(capsys, "eval", "--json")
    assert said.code == 0, said.err
    assert "the newest finished run" in said.err
    assert re.search(r"predicted \d+ patches, " + used, said.err)
    found = json.loads(said.out)
    written = json.loads((folder / "eval-test" / "metrics.json").read_text())
    assert found["metrics"] == written["metrics"]
    assert "auc" in Said(capsys, "eval").out

    said = Said(capsys, "map", "--patient", "S0001", "--patient", "S0002")
    assert said.code == 0, said.err
    assert re.search(r"maps/S0001\.h5  \d+ patches, [\d.]+% called IDC", said.out)
    said = Said(capsys, "map", "--all")
    assert "2 kept, made before by the same checkpoint, settings and data" in said.out
    assert re.search(r"mapped \d+ patches, " + used, said.err)
    assert len(list((work / "maps").glob("S*.h5"))) == 6
    said = Said(capsys, "map", "--all")
    assert "nothing to compute" in said.out
    assert "mapped" not in said.err

    said = Said(capsys, "render", "maps/S0001.h5", "--dpi", 30)
    assert said.out == "maps/S0001.png\n"
    assert len(Said(capsys, "render", "--out", "pictures", "--dpi", 30).out.splitlines()) == 6

    for file, kind in [
        ("maps/S0001.h5", "map"),
        ("data/cohort.h5", "pack"),
        ("maps/cohort.h5", "cohort"),
        (folder / "best.pt", "checkpoint"),
        (folder, "checkpoint"),
        ("bundled", "checkpoint"),
    ]:
        assert re.match(rf"kind +{kind}\n", Said(capsys, "info", file).out)
        assert json.loads(Said(capsys, "info", file, "--json").out)["kind"] == kind


@pytest.mark.parametrize("patches", ["text", np.nan, np.inf, None])
def test_info_of_a_forged_cohort_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], patches: object
):
    row = {"patient": "P1", "area_mm2": 1.0, "idc_area_mm2": 0.5, "idc_fraction": 0.5}
    row |= {} if patches is None else {"patches": patches}
    path = tmp_path / "cohort.h5"
    write_cohort_h5(path, pd.DataFrame([row]), {"P1": tmp_path / "P1.h5"})
    assert "without the columns of a cohort" in Said(capsys, "info", path).error


def test_info_of_a_cohort_file_sums_it_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    row = {"patches": 6, "area_mm2": 0.25, "idc_area_mm2": 0.125, "idc_fraction": 0.5}
    table = pd.DataFrame([{"patient": name, **row} for name in ("P1", "P2")])
    path = tmp_path / "cohort.h5"
    write_cohort_h5(path, table, {name: tmp_path / f"{name}.h5" for name in ("P1", "P2")})
    found = json.loads(Said(capsys, "info", path, "--json").out)
    assert found == {
        "kind": "cohort",
        "file": str(path),
        "maps": 2,
        "patches": 12,
        "area_mm2": 0.5,
        "idc_area_mm2": 0.25,
        "called_idc_of": {"P1": 0.5, "P2": 0.5},
    }


def test_info_of_a_damaged_pack_says_that_it_is_damaged(
    work: Path, capsys: pytest.CaptureFixture[str]
):
    pack = work / "data" / "cohort.h5"
    pack.write_bytes(pack.read_bytes()[:-1])
    assert f"{pack}: HDF5 cannot read it (" in Said(capsys, "info", pack).error
    pack.write_bytes(pack.read_bytes()[:3000])
    assert f"{pack}: HDF5 cannot read it (" in Said(capsys, "info", pack).error
    with h5py.File(pack, "w") as file:
        file.attrs["format"] = "another"
    assert f"{pack}: neither a pack, a checkpoint" in Said(capsys, "info", pack).error


def test_info_of_a_picture_that_states_no_resolution(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    picture = save_png(tmp_path / "scan.png", np.zeros((30, 40, 3), np.uint8))
    found = json.loads(Said(capsys, "info", picture, "--json").out)
    assert len(found.pop("fingerprint")) == 64
    assert found == {
        "kind": "slide",
        "file": str(picture),
        "width": 40,
        "height": 30,
        "mpp": None,
        "mpp_source": "the file does not state its microns per pixel",
        "levels": ["40 x 30"],
    }
    picture.write_bytes(picture.read_bytes()[:30])
    assert "scan.png: " in Said(capsys, "info", picture).error


def test_the_bundled_model_maps_a_tree_without_any_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tree = make_tree(tmp_path / "tree")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    patient = sorted(folder.name for folder in tree.iterdir())[0]
    said = Said(capsys, "map", "--patient", patient, "--data", tree)
    assert said.code == 0, said.err
    assert "the bundled model" in said.err
    with h5py.File(f"maps/{patient}.h5") as file:
        assert json.loads(file.attrs["model"])["architecture"] == "mobilenet_v2"
        # Its last feature map, 3 x 3 at 96 px, would show nothing.
        assert file["cam"].attrs["target_layer"] == "features.13"
        assert file["cam/raw"].shape[1:] == (6, 6)


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["map", "--patient", "nobody"], 1, "no patient 'nobody'"),
        (["map", "--patient", "../../x"], 1, "no patient '../../x'"),
        (["map", "--patient", "S0001", "--data", "none.h5"], 1, "none.h5: no such file"),
        (["map", "--patient", "S0001", "--checkpoint", "text.pt"], 1, "text.pt: not a readable"),
        (["map", "--patient", "S0001", "--device", "cuda:99"], 1, "device cuda:99"),
        (["map"], 2, "give --patient P"),
        (["map", "--patient", "S0001", "--all"], 2, "give --patient P"),
        (["map", "--patient", "S0001", "--batch-size", 0], 2, "--batch-size"),
        (["eval", "--checkpoint", "data"], 1, "no best.pt in this folder"),
        (["eval", "--checkpoint", "none.pt"], 1, "none.pt: no such file"),
        (["train", "--epochs", 0], 1, "epochs is 0"),
        (["train", "--seed", 2**32], 1, "seed is 4294967296; it must be from 0 to"),
        (["train", "--learning-rate", "nan"], 1, "learning_rate is nan; it must be finite"),
        (["demo", "--seed", 2**32], 2, "--seed"),
        (["train", "--model", "vgg"], 1, "unknown model 'vgg'"),
        (["train", "--model", "vit_b_16"], 1, "vit_b_16 has no convolutional feature map"),
        (["train", "--optimizer", "lion"], 2, "--optimizer"),
        (
            ["train", "--imbalance", "class-weights+oversample"],
            1,
            "corrects the imbalance completely",
        ),
        (
            ["train", "--focal-gamma", 3],
            1,
            "focal_gamma 3 has no effect",
        ),
        (["train", "--weights", "none.pt"], 1, "none.pt: No such file"),
        (["train", "--model", "resnet50"], 1, "wsi-idc fetch-weights resnet50"),
        (["train", "--split", "half"], 1, "unknown split 'half'"),
        (["prepare", "none"], 1, "none: no such folder"),
        (["prepare", "none", "--mpp", "nan"], 2, "'nan' is not a number"),
        (["render"], 1, "no maps in maps/"),
        (["export"], 1, "no maps in maps/"),
        (["info", "none"], 1, "none: no such file"),
        (["info", "text.pt"], 1, "text.pt: not a readable checkpoint"),
        (["synth", "data"], 1, "not an empty folder"),
        (["fetch-weights", "cnn"], 1, "trained from scratch"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
    ],
)
def test_the_users_trouble_is_one_line(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    code: int,
    error: str,
):
    (work / "text.pt").write_text("hello\n")
    before = sorted(work.rglob("*"))
    said = Said(capsys, *arguments)
    assert said.code == code
    assert error in said.error
    assert sorted(work.rglob("*")) == before


def test_a_training_that_is_not_finished_is_not_used(
    work: Path, trained: Checkpoint, capsys: pytest.CaptureFixture[str]
):
    from dataclasses import replace

    from wsi_idc.models.checkpoint import save_checkpoint

    save_checkpoint(work / "runs" / "u" / "best.pt", replace(trained, metrics={}))
    said = Said(capsys, "map", "--patient", "S0001", "--checkpoint", "runs/u")
    assert said.code == 1
    assert "its training is not finished" in said.error
    assert not (work / "maps").exists()


def test_no_data_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    said = Said(capsys, "train")
    assert said.code == 1
    assert "no data: there is no data here; make a pack with wsi-idc prepare" in said.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", ["none", "empty", "a pack"])
def test_nothing_to_prepare_says_how_to_get_the_data(
    tmp_path: Path,
    cohort: Pack,
    data: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    if data != "none":
        (tmp_path / "data").mkdir()
    if data == "a pack":
        shutil.copy(cohort.path, "data")
    assert Said(capsys, "prepare").error == (
        "Error: no patches: there is no tree or zip of them in data/; get the data set with "
        "wsi-idc download, or give TREE"
    )


def test_patches_of_other_names_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").touch()
    assert "data: no patch found, but 'a.png' (unknown name)" in Said(capsys, "prepare").error


def test_a_bad_map_is_listed_at_the_end_and_the_exit_code_tells(
    work: Path, capsys: pytest.CaptureFixture[str]
):
    (work / "maps").mkdir()
    (work / "maps" / "S0001.h5").write_text("mine")
    said = Said(capsys, "map", "--patient", "S0001", "--patient", "S0002")
    assert said.code == 1
    assert "maps/S0002.h5" in said.out
    assert "no map of S0001: maps/S0001.h5: not a usable map" in said.err
    assert "1 of 2 patients have no map: S0001" in said.error


def test_a_bug_shows_a_traceback_and_asks_for_a_report(capsys: pytest.CaptureFixture[str]):
    def command() -> None:
        raise ZeroDivisionError("ours")

    assert run(command) == 1
    assert "Traceback" in (err := capsys.readouterr().err)
    assert "This is a bug in wsi-idc" in err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(28, "No space left on device", "maps/x.h5"), 1, "maps/x.h5: No space left"),
        (PermissionError(13, "Permission denied", "data"), 1, "data: Permission denied"),
        (KeyboardInterrupt(), 75, "Stopped; nothing is half-written"),
        (click.UsageError("odd"), 2, "Error: odd"),
    ],
)
def test_the_boundary_knows_the_system(
    capfd: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
):
    def command() -> None:
        raise error

    assert run(command) == code
    err = capfd.readouterr().err
    assert line in err
    assert "Traceback" not in err


def test_messages_cannot_forge_lines_or_move_the_cursor(capsys: pytest.CaptureFixture[str]):
    said = Said(capsys, "info", "none\nError: forged\x1b[2J")
    assert "\x1b" not in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_a_training_and_the_same_command_ends_it(
    work: Path, trained: Checkpoint, number: signal.Signals, capsys: pytest.CaptureFixture[str]
):
    train = ["train", "--epochs", 2, "--batch-size", 16, "--split", "ratio:50/25/25"]
    for _ in range(5):
        process = program(*train, "--out", "runs/r", cwd=work)
        deadline = time.monotonic() + 120
        while not (work / "runs/r/best.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        if process.returncode != 0:
            break
        shutil.rmtree(work / "runs/r")  # on a busy machine it was done before the signal came
    assert process.returncode == 75, out + err
    assert f"Stopped by {number.name}" in err
    assert "Error" not in err
    assert json.loads((work / "runs/r/run.json").read_text())["status"] == "running"
    said = Said(capsys, *train, "--out", "runs/r")
    assert said.code == 0
    ours = Pack(work / "data" / "cohort.h5")
    assert ours.info.source_fingerprint == trained.provenance["data_fingerprint"]
    from wsi_idc.models.checkpoint import load_checkpoint

    resumed = load_checkpoint(work / "runs/r/best.pt")
    assert all((resumed.state[name] == trained.state[name]).all() for name in trained.state)


@pytest.mark.parametrize(
    "words", [("info", "bundled"), ("info", "bundled", "--json"), ("map", "--help")]
)
def test_a_reader_that_leaves_gets_no_word_about_it(words: tuple[str, ...]):
    process = program(*words)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def test_the_demo_ends_with_what_was_made_and_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from wsi_idc import demo

    for name, value in [("NUM_PATIENTS", 6), ("PATCHES_PER_PATIENT", 40), ("EPOCHS", 1)]:
        monkeypatch.setattr(demo, name, value)
    monkeypatch.chdir(tmp_path)
    said = Said(capsys, "demo")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert "  maps        wsi-idc-demo/maps/*.h5, one for each patient" in lines
    assert "  wsi-idc prepare TREE" in lines
    assert lines[-1] == "Research use only: no output of this program is a diagnosis."
