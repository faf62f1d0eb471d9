import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from wsi_idc.core.errors import RunError
from wsi_idc.core.files import temporary_path
from wsi_idc.training.runs import DEFAULT, Run, default_checkpoint, default_run, set_default


def test_equal_settings_have_the_same_default_run(tmp_path: Path):
    run = default_run(tmp_path, "cnn", {"epochs": 2, "seed": 0})
    assert run == default_run(tmp_path, "cnn", {"seed": 0, "epochs": 2})
    assert run != default_run(tmp_path, "cnn", {"seed": 1, "epochs": 2})
    assert run.folder.name.startswith("cnn-")


def test_other_settings_are_refused_with_their_differences(tmp_path: Path):
    run = Run(tmp_path / "run")
    run.validate_config({"epochs": 3})  # no run yet
    run.start({"epochs": 2, "seed": 0}, {})
    run.validate_config({"epochs": 2, "seed": 0})
    with pytest.raises(RunError, match=r"\(epochs 2 -> 3\); give another --out, or --overwrite"):
        run.validate_config({"epochs": 3, "seed": 0})


def test_a_folder_of_other_files_does_not_change(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not empty and is not a run"):
        Run(tmp_path).start({}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_new_training_deletes_the_run_and_keeps_other_files(tmp_path: Path):
    run = Run(tmp_path)
    run.start({"seed": 0}, {})
    run.write_history([{"epoch": 1}])
    run.best.write_bytes(b"weights")
    (tmp_path / "notes.txt").write_text("mine")
    run.start({"seed": 1}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "run.json"]
    assert run.read()["asked"] == {"seed": 1}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other"}'])
def test_a_damaged_run_is_one_line(tmp_path: Path, content: str):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json: not a"):
        Run(tmp_path).read()
    (tmp_path / "run.json").unlink()
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(RunError, match="not a regular file"):
        Run(tmp_path).read()


def test_the_default_is_what_the_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    assert default_checkpoint(runs) is None
    for path in (Path("runs/a/best.pt"), Path("elsewhere/b/best.pt"), Path("c.pt")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
        set_default(runs, path.parent if path.name == "best.pt" else path)
        assert default_checkpoint(runs).resolve() == path.resolve()
    Path("disk/far/runs").mkdir(parents=True)
    Path("link").symlink_to("disk/far/runs")
    set_default(Path("link"), Path("elsewhere/b"))
    assert default_checkpoint(Path("link")) == Path("elsewhere/b/best.pt")
    set_default(runs, Path("runs/a"))
    assert (runs / "default").read_text() == "a\n"
    runs.rename("moved")
    assert default_checkpoint(Path("moved")) == Path("moved/a/best.pt")
    set_default(Path("moved"), None)
    assert default_checkpoint(Path("moved")) is None


def test_the_default_of_a_run_that_is_replaced_is_its_finished_checkpoint(tmp_path: Path):
    run = Run(tmp_path / "a")
    run.folder.mkdir()
    run.best.write_bytes(b"old")
    run.write("finished", {}, {})
    set_default(tmp_path, run.folder)
    run.start({}, {})
    assert default_checkpoint(tmp_path) == run.replaced
    run.best.write_bytes(b"new")  # of an epoch, not calibrated
    assert default_checkpoint(tmp_path) == run.replaced
    run.write("finished", {}, {})
    assert default_checkpoint(tmp_path) == run.best
    run.replaced.write_bytes(b"old")  # of a training that was killed after its end
    assert default_checkpoint(tmp_path) == run.best


def test_two_trainings_that_finish_together_set_the_default(tmp_path: Path):
    run, file = tmp_path / "a", tmp_path / DEFAULT
    with temporary_path(file):
        thread = threading.Thread(target=set_default, args=(tmp_path, run))
        thread.start()
        thread.join(0.5)
        assert not file.exists()
    thread.join(10)
    assert file.read_text() == "a\n"


@pytest.mark.parametrize("content", [b"gone", b"", b"default", b"\xff", b"a\0b", b"a\nb"])
def test_a_default_without_a_checkpoint_is_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "default").write_bytes(content)
    with pytest.raises(RunError, match="choose a run with wsi-idc use RUN"):
        default_checkpoint(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_default_that_is_no_file_is_one_line(tmp_path: Path, make: Callable[[Path], None]):
    make(tmp_path / "default")
    with pytest.raises(RunError, match="choose a run"):
        default_checkpoint(tmp_path)
    if make is os.mkdir:
        with pytest.raises(RunError, match="is a folder"):
            set_default(tmp_path, tmp_path / "a")


def test_damaged_lines_of_the_history_are_skipped(tmp_path):
    run = Run(tmp_path)
    assert run.read_history() is None
    history = [{"epoch": 1, "val_auc": 0.5}, {"epoch": 2, "val_auc": 0.75}]
    run.write_history(history)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == run.read_history() == history
    lines = [
        '{"epoch": 3, "val_auc": NaN, "val_loss": "low", "train_loss": 0.5}',
        '{"epoch": "4"}',
        f'{{"epoch": 1{"0" * 400}}}',
        "[5]",
        "[" * 10_000,
        '{"epoch": 6',
    ]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("\n".join(lines))
    assert run.read_history() == [*history, {"epoch": 3, "train_loss": 0.5}]
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n")
    assert run.read_history() is None
