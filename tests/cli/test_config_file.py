from pathlib import Path

import pytest

from tests.cli.commands import RunCommand

CONFIG = """
overwrite = true

[train]
model = "cnn"
epochs = 2
batch-size = 16
split = "ratio:50/25/25"
seed = 7

[map]
checkpoint = ["runs/a"]
no_cam = true
out = "others"
"""


def test_a_file_sets_the_options_that_the_command_line_does_not_give(
    work: Path, command: RunCommand
):
    Path("my.toml").write_text(CONFIG)
    result = command("train", "--config", "my.toml", "--epochs", 1, "--out", "runs/a")
    assert result.code == 0, result.err
    log = " ".join(result.err.split())
    assert "options from my.toml: overwrite true, model cnn, batch_size 16, split rat" in log
    assert "the command line replaces options of my.toml: epochs" in log
    assert "settings: model cnn (my.toml), weights none, input_size 0," in log
    assert "seed 7 (my.toml), epochs 1 (command line), monitor average_precision," in log
    assert len(Path("runs/a/metrics.jsonl").read_text().splitlines()) == 1

    result = command("map", "S0001", "--config", "my.toml")
    assert result.code == 0, result.err
    assert "checkpoint runs/a, no_cam true, out others" in " ".join(result.err.split())
    assert [path.name for path in Path("others").iterdir()] == ["S0001.h5"]
    assert "options from" not in command("export", "--config", "my.toml", "-q").err


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("epoch = 3", "the file has an unknown key 'epoch'; did you mean epochs?"),
        ("no_cam = true", "the file has an unknown key 'no_cam'; permitted: model, "),
        ("epoch = 3\n[map]\nno_cam = true", "unknown key 'epoch'; did you mean epochs?"),
        ("[train]\nepoch = 3", "[train] has an unknown key 'epoch'; did you mean epochs?"),
        ("[trian]\nepochs = 3", "the file has an unknown key 'trian'; did you mean train?"),
        ("epochs = 3.5", "epochs: '3.5' is not a valid integer."),
        ("epochs = true", "epochs must be a number or a text, not True"),
        ("epochs = [1, 2]", "epochs must be a number or a text, not [1, 2]"),
        ("overwrite = 1", "overwrite must be true or false, not 1"),
        ('model = "a\\nb"', "model must be one line of printable text"),
        ('optimizer = "lion"', "optimizer: 'lion' is not one of 'adamw', 'adam', 'sgd'."),
        (
            "batch-size = 8\nbatch_size = 16",
            "batch-size and batch_size are the same option; leave out one of them",
        ),
        ("[train]\nweight_decay = 0\nweight-decay = 1", "weight_decay and weight-decay are the sa"),
        ("train = 3", "train must be a table: write [train]"),
        ("[[train]]\nepochs = 3", "train must be a table: write [train]"),
        ("epochs =", "not a readable TOML file"),
        (f"epochs = [0x{'f' * 5000}]", "not a readable TOML file (Exceeds the limit"),
        ('command = "train"', "this is a job file; run it with wsi-idc job"),
        (None, "No such file or directory; give a TOML file with options"),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_is_written(
    work: Path, command: RunCommand, text: str | None, error: str
):
    if text is not None:
        Path("my.toml").write_text(text)
    result = command("train", "--config", "my.toml")
    assert result.code == 1
    assert result.error.startswith("Error: my.toml: ")
    assert error in result.error
    assert not Path("runs").exists()


def test_keys_of_other_commands_are_permitted_above_tables(work: Path, command: RunCommand):
    Path("my.toml").write_text('epochs = 3\nout = "others"\n[train]\nmodel = "cnn"\n')
    result = command("map", "S0001", "--no-cam", "--config", "my.toml")
    assert result.code == 0, result.err
    assert "options from my.toml: out others" in result.err


def test_a_job_takes_its_options_from_the_job_file(work: Path, command: RunCommand):
    Path("job.toml").write_text('command = "train"\n')
    Path("my.toml").write_text("epochs = 3")
    result = command("job", "job.toml", "--config", "my.toml")
    assert result.code == 2
    assert "the job file sets the options; leave out --config" in result.error
