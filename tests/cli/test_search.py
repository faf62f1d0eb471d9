import json
import re
from pathlib import Path

import pytest

from tests.cli.commands import RunCommand
from wsi_idc.models.checkpoint import load_checkpoint

JOB = """
command = "search"
name = "rates"
[config]
model = "cnn"
epochs = 1
batch_size = 32
split = "ratio:50/25/25"
[axes]
learning_rate = [1e-3, RATE]
"""


def test_a_search_prints_its_table_and_the_next_command(work: Path, command: RunCommand):
    (work / "job.toml").write_text(JOB.replace("RATE", "1e-2"))
    result = command("search", "job.toml", "--device", "cpu")
    assert result.code == 0, result.err
    assert "trial 1 (1 of 2 trials are done): learning_rate 0.01" in result.err
    table = result.out.splitlines()
    columns = "trial state average precision AUC F1 threshold epoch seconds"
    assert table[0].split() == columns.split()
    assert len({len(table[number]) for number in (0, 1, 3)}) == 1
    assert re.match(r" +[01]  complete +0\.\d{4} +0\.\d{4} +0\.\d{4} +0\.\d{4} +1 +\d+$", table[1])
    assert re.fullmatch(r"       learning_rate 0\.0?01", table[2])
    assert max(map(len, table)) <= 80
    best = re.search(r"best +trial ([01]); its job file is runs/rates/best\.toml", result.out)
    checkpoint = f"runs/rates/trial-000{best[1]}/best.pt"
    assert f"wsi-idc eval --checkpoint {checkpoint}" in result.out
    assert (work / "runs/rates/search.png").read_bytes().startswith(b"\x89PNG")

    result = command("search", "job.toml", "--json", "-q")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert (found["metric"], found["running_elsewhere"]) == ("average_precision", 0)
    assert found["trials"][0]["number"] == found["best"]["number"]
    assert found["best"]["checkpoint"] == checkpoint
    assert found["best"]["config"]["model"] == "cnn"
    assert command("eval", "--checkpoint", checkpoint).code == 0

    result = command("job", "runs/rates/best.toml", "--device", "cpu", "--json", "-q")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["run"] == "runs/rates-best"
    again = load_checkpoint(Path(json.loads(result.out)["checkpoint"])).state
    best = load_checkpoint(Path(checkpoint)).state
    assert all(again[name].equal(value) for name, value in best.items())


def test_failed_trials_are_listed_at_the_end(work: Path, command: RunCommand):
    (work / "job.toml").write_text(JOB.replace("RATE", "1e9"))
    result = command("search", "job.toml", "--out", "here", "--device", "cpu")
    assert result.code == 1
    assert result.error == "Error: 1 of 2 trials failed: 1; the reasons are above"
    assert "trial 1 failed: the loss is not finite in epoch 1" in result.err
    assert "best        trial 0" in result.out
    assert (work / "here" / "trials.csv").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("search", JOB.replace("RATE", "'f'"), "axis learning_rate must be a number, not 'f'"),
        (
            "search",
            'command = "train"',
            'this job is not a search; give a file with command = "search"',
        ),
        (
            "job",
            JOB.replace("RATE", "nan"),
            "at learning_rate nan: learning_rate is nan; it must be ",
        ),
    ],
)
def test_a_bad_job_is_one_line_and_writes_nothing(
    work: Path, command: RunCommand, name: str, text: str, message: str
):
    (work / "job.toml").write_text(text)
    result = command(name, "job.toml")
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err.startswith(f"Error: job.toml: {message}")
    assert not (work / "runs").exists()
