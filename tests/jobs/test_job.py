"""Job files: their tasks, the commands these stand for, and what is refused."""

from dataclasses import fields
from pathlib import Path

import pytest

from wsi_idc.cli.job import COMMANDS, command_spec, open_job
from wsi_idc.core.errors import JobError
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.runs import Run

JOBS = Path(__file__).parents[2] / "jobs"
ALL = sorted(JOBS.glob("*.toml"))
NUM_TASKS = {
    "baseline": 4,
    "bundled": 5,
    "train_all_models": 5,
    "encoders": 5,
    "cv5": 5,
    "search": 3,
    "imbalance": 3,
    "map_all": 4,
    "slides": 4,
}
# Made for one question each, with what differs from the defaults.
SHORT = {"imbalance"}


def write(tmp_path: Path, text: str, name: str = "try.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_each_job_of_the_project_is_valid_and_has_every_key_with_a_comment(path: Path):
    job = open_job(path, [])
    assert job.name == path.stem
    assert len(job.tasks) == NUM_TASKS.get(path.stem, 1)
    text = path.read_text()
    head = text[: text.index("command = ")]
    command = "search" if job.command == "search" else "job"
    assert f"wsi-idc {command} jobs/{path.name}" in head
    if path.stem in SHORT:
        return
    assert "Duration: " in head
    assert "Result:" in head
    assert f"jobs/{path.name}" in head or "slurm/" in head
    if job.command in ("train", "search"):
        keys = [option.name for option in fields(TrainConfig)]
    else:
        keys = [key for key in command_spec(COMMANDS[job.command]).options if key != "shard"]
    for key in keys:
        there = [
            line for line in text.splitlines() if line.removeprefix("# ").startswith(f"{key} =")
        ]
        assert there, key
        # An axis has its comment above, or none: it says itself what it holds.
        assert "#" in there[0].removeprefix("# ") or there[0].endswith("]"), there[0]


TRAIN = 'command = "train"\n'
EVAL = 'command = "eval"\n[config]\n'
COMPARE = 'command = "compare"\n[config]\nout = "c"\nb = "two"\na = "one"\n'
TWO_EPOCHS = TRAIN + 'name = "n"\n[config]\nepochs = 2\n'
AXES = (
    TRAIN
    + """
name = "both"
[config]
compile = true
[axes]
model = ["cnn", "cnn-bn"]
split = ["kfold:2/0", "kfold:2/1"]
"""
)
SHARDS = 'command = "map"\ntasks = 2\n[config]\nall = true\nno_cam = true\ntta = false\n'
SEARCH = 'command = "search"\nname = "s"\ntasks = 2\n[axes]\nseed = [0, 1]\n'


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        (TRAIN + "[config]\nepochs = 2\n", "", ["train --epochs 2 --out runs/try"]),
        (TWO_EPOCHS, "--epochs 2", ["train --epochs 2 --out runs/n"]),
        (TWO_EPOCHS, "--out mine", ["train --epochs 2 --out mine"]),
        (
            TWO_EPOCHS,
            "--epochs 3 --data here.h5 --overwrite",
            ["train --epochs 3 --data here.h5 --out runs/n-epochs-3 --overwrite"],
        ),
        (
            AXES,
            "--device cpu -q -v -v",
            [
                f"train --compile --model {model} --split kfold:2/{fold} --out "
                f"runs/both-{model}-kfold-2-{fold} --device cpu --verbose --verbose --quiet"
                for model in ("cnn", "cnn-bn")
                for fold in (0, 1)
            ],
        ),
        (
            TRAIN + '[axes]\nsplit = ["a/b.csv", "a-b.csv"]\n',
            "",
            [
                f"train --split a{sign}b.csv --out runs/try-task-{n}"
                for n, sign in ((1, "/"), (2, "-"))
            ],
        ),
        (
            SHARDS,
            "",
            [f"map --all --no-cam{shard}" for shard in (" --shard 1/2", " --shard 2/2", "")],
        ),
        (SEARCH, "--device cpu", 3 * ["search --out runs/s --device cpu -- try.toml"]),
        # The arguments are in the order of the command.
        (COMPARE, "--num-resamples 200", ["compare --out c --num-resamples 200 -- one two"]),
        # No text of a file becomes an option.
        (EVAL + 'runs = ["--checkpoint=x"]\n', "", ["eval -- --checkpoint=x"]),
    ],
)
def test_each_task_and_the_call_for_all_are_command_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, flags: str, expected: list[str]
):
    monkeypatch.chdir(tmp_path)
    job = open_job(write(Path(), text), flags.split())
    calls = [*job.tasks, *([job.single_call] if job.single_call else [])]
    assert [" ".join(call.arguments()) for call in calls] == expected
    assert (job.single_call is None) == (job.command not in ("map", "search"))


def test_patterns_stand_for_the_files_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    job = open_job(write(tmp_path, EVAL + 'runs = ["runs/a-*", "runs/b"]\ntta = true\n'), [])
    assert job.task(1).arguments() == ["eval", "--tta", "--", "runs/a-*", "runs/b"]
    for name in ("a-2", "a-1", "a-3"):
        run = Run(tmp_path / "runs" / name)
        run.write("running" if name == "a-3" else "finished", {}, {})
        run.best.touch()
    # What is still being trained is left out.
    assert job.task(1).arguments() == ["eval", "--tta", "--", "runs/a-1", "runs/a-2", "runs/b"]
    assert job.task(1).unfinished_runs() == ["runs/a-3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("command = ", "not a readable TOML file"),
        ("", "command must be one of prepare, .*, not None"),
        ('command = "tran"', "not 'tran'; did you mean train?"),
        (TRAIN + 'name = "../up"\n', "name '../up' is not a plain name"),
        (TRAIN + "nme = 3\n", "the file has an unknown key 'nme'; did you mean name?"),
        (TRAIN + "config = 3\n", r"config must be a table: write \[config\]"),
        (TRAIN + "[config]\nepoch = 3\n", "unknown key 'epoch'; did you mean epochs?"),
        (TRAIN + "[config]\nepochs = '3'\n", "epochs must be a number, not '3'"),
        (TRAIN + "[config]\nepochs = true\n", "epochs must be a number or a text, not True"),
        (TRAIN + "[config]\nepochs = 0\n", "epochs is 0; it must be at least 1"),
        (
            TRAIN + "[config]\noptimizer = 'lion'\n",
            "Invalid value for '--optimizer': 'lion' is not one of",
        ),
        (TRAIN + "[config]\ndevice = 'cuda'\n", "unknown key 'device'"),
        (TRAIN + "[config]\noverwrite = true\n", "unknown key 'overwrite'"),
        (TRAIN + "[axes]\nepochs = 3\n", "axis epochs must be a list"),
        (TRAIN + "[axes]\nepochs = []\n", "axis epochs must be a list"),
        (TRAIN + "[axes]\nepochs = [1, 1]\n", "axis epochs contains a value twice"),
        (TRAIN + "[axes]\nepochs = [1, 0]\n", "at epochs 0: epochs is 0"),
        (TRAIN + "[axes]\nepochs = [1]\n[config]\nepochs = 1\n", "both in"),
        (TRAIN + "[axes]\nseed = [1, 2]\n[config]\nout = 'a'\n", "out gives one folder to all"),
        (TRAIN + '[config]\nsplit = "a\\u0000b"\n', "split must be one line of printable text"),
        ('command = "eval"\n[axes]\ntta = [true, false]\n', "is only for train"),
        (
            'command = "map"\ntasks = 2\n[config]\nshard = "1/2"\n',
            "the keys tasks and shard cannot be combined",
        ),
        (TRAIN + "tasks = 3\n", "tasks is only for a search or a map"),
        (TRAIN + "tasks = 0\n", "tasks is 0; it must be from 1 to"),
        ('command = "map"\ntasks = 2.5\n', "tasks must be an integer, not 2.5"),
        ('command = "map"\n[config]\npatient = "10253"\n', "patient must be a list, not '10253'"),
        ('command = "map"\n[config]\ncam_method = "x"\n', "Invalid value for '--cam-method'"),
        ('command = "map"\n[config]\nmin_tissue = nan\n', "is not a number"),
        ('command = "search"\n', r"\[axes\] is empty"),
        (
            TRAIN + f"[config]\nweight_decay = {'9' * 400}\n",
            "weight_decay is inf; it must be finite",
        ),
        (TRAIN + f"[axes]\nseed = {list(range(10_001))}\n", "axis seed has 10001 values"),
        # So many points do not fit into memory.
        (
            TRAIN
            + "[axes]\n"
            + "".join(
                f"{n} = {list(range(9000))}\n" for n in ("seed", "epochs", "patience", "freeze")
            ),
            f"{9000**4} tasks, but at most 10000 are allowed; shorten an axis",
        ),
    ],
)
def test_an_error_is_one_line(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, text)
    with pytest.raises(JobError, match=message) as caught:
        open_job(path, [])
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_task_numbers_are_checked(tmp_path: Path):
    job = open_job(write(tmp_path, AXES), [])
    for number in (0, 5):
        with pytest.raises(JobError, match=f"no task {number}; the job has tasks 1 to 4"):
            job.task(number)
    with pytest.raises(JobError, match="split is an axis of this job"):
        open_job(write(tmp_path, AXES), ["--split", "auto"])
