"""The default checkpoint: ``train`` and ``use`` choose it, a job does not."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.commands import RunCommand
from wsi_idc.data.pack import Pack
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.training.runs import Run

WORDS = "train --model cnn-bn --epochs 1 --batch-size 16 --split ratio:50/25/25 --device cpu -q"


def test_train_and_use_choose_the_default_and_a_job_does_not(
    cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.chdir(tmp_path)
    train = [*WORDS.split(), "--data", cohort.path]
    result = command(*train, "--out", "runs/first")
    assert "runs/default names this run" in result.out
    assert Path("runs/default").read_text() == "first\n"
    Path("job.toml").write_text('command = "train"\n[config]\nmodel = "cnn-bn"\nepochs = 1\n')
    job = ["job", "job.toml", *train[3:], "--out", "runs/second", "--json"]
    assert json.loads(command(*job).out)["is_default"] is False
    assert Path("runs/default").read_text() == "first\n"
    assert command("use", "runs/second").out.startswith("default checkpoint: runs/second/best.pt")
    one = ["map", "--patient", cohort.patients[0], "--data", cohort.path, "--device", "cpu", "-q"]
    assert "checkpoint: runs/second/best.pt (the default" in command(*one).err
    assert "bundled" in command("use", "bundled").out
    assert not Path("runs/default").exists()
    before = Path("maps", f"{cohort.patients[0]}.h5").read_bytes()
    result = command(*one)  # now with the bundled model
    assert result.code == 1
    assert "1 of 1 maps were not made" in result.error
    assert "was made with another" in result.err
    assert Path("maps", f"{cohort.patients[0]}.h5").read_bytes() == before
    assert command(*one, "--overwrite").code == 0
    assert command(*one).code == 0


def test_use_refuses_what_is_no_finished_run(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.source.parent, "runs/mine")
    record = json.loads(Path("runs/mine/run.json").read_text())
    Path("runs/mine/run.json").write_text(json.dumps(record | {"status": "stopped"}))
    Path("runs/empty").mkdir()
    for run, reason in {"runs/mine": "not finished", "runs/empty": "no best.pt"}.items():
        result = command("use", run)
        assert (result.code, reason in result.error) == (1, True)
    assert not Path("runs/default").exists()


def test_a_run_that_a_new_training_replaces_is_used_until_then(
    cohort: Pack,
    trained: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: RunCommand,
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.source.parent, "runs/a")
    assert command("use", "runs/a").code == 0
    Run(Path("runs/a")).start({}, {})  # as train --overwrite
    one = ("map", "--patient", cohort.patients[0], "--data", cohort.path, "--device", "cpu")
    result = command(*one)
    assert result.code == 0, result.err
    assert "checkpoint: runs/a/replaced.pt (the default, set in runs/default; the new" in (
        result.err
    )
    result = command(*one, "--checkpoint", "runs/a")
    assert result.error == (
        "Error: runs/a: the new training of this run is not finished; wait for it, run the same "
        "wsi-idc train again, or give runs/a/replaced.pt"
    )


def test_a_run_cannot_have_the_name_of_the_default_file(
    cohort: Pack,
    trained: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: RunCommand,
):
    monkeypatch.chdir(tmp_path)
    train = [*WORDS.split(), "--data", cohort.path]
    result = command(*train, "--out", "runs/default")  # before the training
    assert (result.code, "names the default run" in result.error) == (1, True)
    assert not Path("runs").exists()
    shutil.copytree(trained.source.parent, "runs/mine")
    command("use", "runs/mine")
    assert command("use", "runs/default").code == 1
    assert Path("runs/default").read_text() == "mine\n"
    Path("runs/default").unlink()
    Path("runs/mine").rename("runs/default")
    assert "rename the folder" in command(*train).error
    result = command("eval", "runs/default", "--data", cohort.path, "--no-report")
    assert "checkpoint: runs/default/best.pt (as given)" in result.err
