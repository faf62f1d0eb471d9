import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import h5py
import pytest

from tests.cli.commands import Command, RunCommand
from tests.packs import make_tree
from wsi_idc.cli.main import group, run
from wsi_idc.data.pack import Pack
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def names_of(commands: click.Group, *above: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of a group and of all its commands, such as ("bench", "map")."""
    yield above
    for name, child in commands.commands.items():
        if isinstance(child, click.Group):
            yield from names_of(child, *above, name)
        else:
            yield (*above, name)


@pytest.mark.parametrize("words", list(names_of(group)), ids="-".join)
def test_help_fits_80_columns(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.setenv("COLUMNS", "80")
    lines = command(*words, "--help").out.splitlines()
    assert len(lines) > 10
    assert [line for line in lines if len(line) > 80] == []
    _, _, commands = "\n".join(lines).partition("\nCommands:\n")
    assert "..." not in commands  # no short help is cut off


@pytest.mark.parametrize("name", sorted(group.commands))
def test_each_command_has_help_with_an_example(name: str, command: RunCommand):
    result = command(name, "--help")
    assert result.code == 0
    assert re.search(r"Examples?:\n +wsi-idc " + name, result.out)


def test_train_eval_map_render_info(work: Path, command: RunCommand):
    train = ["train", "--model", "cnn-bn", "--epochs", 1, "--batch-size", 16]
    train += ["--split", "ratio:50/25/25"]
    result = command(*train)
    assert result.code == 0, result.err
    assert "split: ratio:50/25/25" in result.err
    assert "settings: model cnn-bn" in result.err
    used = r"\d+ patches/s, \d+% of the time waiting for data, \d+% in the network"
    log = " ".join(result.err.split())
    threshold = r"largest F1 0\.\d{3} at the threshold 0\.\d\d, best epoch so far, "
    end = r", run 100%, 00:00 left"
    assert re.search(r"epoch 1/1: train loss .+, " + threshold + used + end, log)
    first = result.err.index("settings: ")
    lines = [line for line in result.err[first:].splitlines() if "slides are complete" not in line]
    assert max(map(len, lines)) <= 80
    (folder,) = (work / "runs").glob("*/")
    (epoch,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert 0 < epoch["network_share"] <= 1
    assert 0 <= epoch["data_wait_share"] < 1
    assert str(folder.relative_to(work) / "best.pt") in result.out
    record = json.loads(command(*train, "--json").out)
    assert record["was_finished"] is True
    assert record["threshold_rule"] == "largest F1 on val"
    assert 0 < record["threshold"] < 1
    assert {"temperature", "smoothing", "best_epoch", "auc"} <= set(record)

    result = command("eval", "--json")
    assert result.code == 0, result.err
    assert "the default, set in runs/default" in result.err
    assert re.search(r"predicted \d+ patches, " + used + r"\n", result.err)
    record = json.loads(result.out)
    written = json.loads((folder / "eval-test" / "metrics.json").read_text())
    assert record["metrics"] == written["metrics"]
    assert "auc" in command("eval").out

    result = command("map", "--patient", "S0001", "--patient", "S0002")
    assert result.code == 0, result.err
    assert re.search(r"maps/S0001\.h5  \d+ patches, [\d.]+% called IDC", result.out)
    result = command("map", "--all")
    assert "2 kept, because checkpoint, settings and data are the same" in result.out
    assert re.search(r"mapped \d+ patches, " + used + r"\n", result.err)
    assert len(list((work / "maps").glob("S*.h5"))) == 6
    result = command("map", "--all")
    assert "nothing to compute" in result.out
    assert "mapped" not in result.err

    result = command("render", "maps/S0001.h5", "--dpi", 30)
    assert result.out == "maps/S0001.png\n"
    assert len(command("render", "--out", "pictures", "--dpi", 30).out.splitlines()) == 6

    checkpoints = dict.fromkeys([folder / "best.pt", folder, "bundled"], "checkpoint")
    kinds = {"maps/S0001.h5": "map", "data/cohort.h5": "pack", "maps/cohort.h5": "cohort"}
    for file, kind in (kinds | checkpoints).items():
        assert re.match(rf"kind +{kind}\n", command("info", file).out)
        assert json.loads(command("info", file, "--json").out)["kind"] == kind


def test_the_bundled_model_maps_a_tree_without_any_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    tree = make_tree(tmp_path / "tree")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    patient = sorted(folder.name for folder in tree.iterdir())[0]
    result = command("map", "--patient", patient, "--data", tree)
    assert result.code == 0, result.err
    assert "the bundled model" in result.err
    with h5py.File(f"maps/{patient}.h5") as file:
        assert json.loads(file.attrs["model"])["architecture"] == "mobilenet-v2-s16"
        assert file["cam"].attrs["target_layer"] == "features"
        assert file["cam/raw"].shape[1:] == (6, 6)


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["map", "--patient", "../../x"], 1, "no patient '../../x'"),
        (["map", "--patient", "S0001", "--device", "cuda:99"], 1, "no cuda:99"),
        (["map", "--patient", "S0001", "--all"], 2, "give patients (PATIENT"),
        (["map", "--patient", "S0001", "--batch-size", 0], 2, "--batch-size"),
        (["eval", "--checkpoint", "data"], 1, "no best.pt in this folder"),
        (["train", "--seed", 2**32], 1, "seed is 4294967296; it must be from 0 to"),
        (["train", "--learning-rate", "nan"], 1, "learning_rate is nan; it must be finite"),
        (["demo", "--seed", 2**32], 2, "--seed"),
        (["train", "--model", "vgg"], 1, "unknown model 'vgg'"),
        (["train", "--model", "vit_b_6"], 1, "unknown model 'vit_b_6'; did you mean vit_b_16"),
        (["train", "--optimizer", "lion"], 2, "--optimizer"),
        (
            ["train", "--imbalance", "class-weights+oversample"],
            1,
            "class-weights and oversample cannot be combined",
        ),
        (["train", "--focal-gamma", 3], 1, "focal_gamma 3 has no effect"),
        (["train", "--weights", "none.pt"], 1, "none.pt: No such file"),
        (["train", "--model", "resnet50"], 1, "wsi-idc fetch-weights resnet50"),
        (["train", "--split", "half"], 1, "unknown split 'half'"),
        (["prepare", "none"], 1, "none: no such folder"),
        (["prepare", "none", "--mpp", "nan"], 2, "'nan' is not a number"),
        (["render"], 1, "no maps in maps/"),
        (["export"], 1, "no maps in maps/"),
        (["info", "none"], 1, "none: no such file"),
        (["synth", "data"], 1, "not an empty folder"),
        (["fetch-weights", "cnn"], 1, "cnn has no ImageNet weights"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
    ],
)
def test_a_user_error_is_one_line_and_writes_nothing(
    work: Path, command: RunCommand, arguments: list[object], code: int, error: str
):
    before = sorted(work.rglob("*"))
    result = command(*arguments)
    assert result.code == code
    assert error in result.error
    assert sorted(work.rglob("*")) == before


def test_an_unfinished_training_is_not_used(work: Path, trained: Checkpoint, command: RunCommand):
    save_checkpoint(work / "runs" / "u" / "best.pt", replace(trained, metrics={}))
    result = command("map", "--patient", "S0001", "--checkpoint", "runs/u")
    assert result.code == 1
    assert "the training is not finished" in result.error
    assert not (work / "maps").exists()


def test_a_bad_map_is_listed_at_the_end(work: Path, command: RunCommand):
    (work / "maps").mkdir()
    (work / "maps" / "S0001.h5").write_text("mine")
    result = command("map", "--patient", "S0001", "--patient", "S0002")
    assert result.code == 1
    assert "maps/S0002.h5" in result.out
    assert "map of S0001 not replaced: maps/S0001.h5: not a usable map" in result.err
    assert "1 of 2 maps were not made: S0001" in result.error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ZeroDivisionError("ours"), 1, "This is a bug in wsi-idc"),
        (OSError(28, "No space left on device", "maps/x.h5"), 1, "maps/x.h5: No space left"),
        (PermissionError(13, "Permission denied", "data"), 1, "data: Permission denied"),
        (KeyboardInterrupt(), 75, "Stopped; each written file is complete"),
        (click.UsageError("odd"), 2, "Error: odd"),
    ],
)
def test_the_error_boundary_prints_a_traceback_only_for_bugs(
    capfd: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
):
    def fail() -> None:
        raise error

    assert run(fail) == code
    err = capfd.readouterr().err
    assert line in err
    assert ("Traceback" in err) == isinstance(error, ZeroDivisionError)


@pytest.mark.parametrize(
    ("given", "similar"),
    [
        ("--lr", "Did you mean --learning-rate?"),
        ("--wd", "Did you mean --weight-decay?"),
        ("--rate", "Did you mean --learning-rate?"),
        ("--epoch", "Did you mean --epochs?"),
        ("--models", "Did you mean --model?"),
        ("--modle", "Did you mean --model?"),
    ],
)
def test_an_unknown_option_is_answered_with_a_similar_one(
    given: str, similar: str, command: RunCommand
):
    result = command("train", given, "1")
    assert result.code == 2
    assert similar in result.err.replace("'", "")  # some versions of click quote the option


def test_messages_are_one_printable_line(command: RunCommand):
    result = command("info", "none\nError: forged\x1b[2J")
    assert "\x1b" not in result.err
    assert result.err.count("\n") == 1


def test_a_signal_saves_a_training_and_the_same_command_resumes_it(
    work: Path, trained: Checkpoint, command: RunCommand
):
    train = ["train", "--epochs", 2, "--batch-size", 16, "--split", "ratio:50/25/25"]
    for _ in range(5):
        process = Command(*train, "--out", "runs/r")
        deadline = time.monotonic() + 120
        while not (work / "runs/r/best.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        if process.wait() != 0:
            break
        shutil.rmtree(work / "runs/r")  # the training ended before the signal
    assert process.wait() == 75, process.text()
    assert "Stopped by SIGINT" in process.text()
    assert "Error" not in process.text()
    assert json.loads((work / "runs/r/run.json").read_text())["status"] == "running"
    assert command(*train, "--out", "runs/r").code == 0
    resumed = load_checkpoint(work / "runs/r/best.pt")
    fingerprints = {model.provenance["data_fingerprint"] for model in (resumed, trained)}
    assert len(fingerprints) == 1
    assert all((resumed.state[name] == trained.state[name]).all() for name in trained.state)


def start_program(*arguments: object) -> "subprocess.Popen[str]":
    """Start ``python -m wsi_idc`` with its output in pipes."""
    words = [sys.executable, "-m", "wsi_idc", *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_module_has_the_name_of_the_program():
    process = start_program("info", "--nonsense")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.startswith("Usage: wsi-idc info [OPTIONS]")


@pytest.mark.parametrize("words", [("info", "PACK"), ("info", "PACK", "--json"), ("map", "--help")])
def test_a_closed_pipe_ends_the_program_silently(words: tuple[str, ...], cohort: Pack):
    process = start_program(*(cohort.path if word == "PACK" else word for word in words))
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()
