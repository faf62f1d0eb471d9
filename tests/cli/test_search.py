import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cli.test_main import Said
from wsi_idc.data.pack import Pack
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


@pytest.fixture
def work(tmp_path: Path, cohort: Pack, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with the synthetic pack in data/ and a job file."""
    (tmp_path / "data").mkdir()
    shutil.copy(cohort.path, tmp_path / "data")
    (tmp_path / "job.toml").write_text(JOB.replace("RATE", "1e-2"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_search_says_its_table_and_what_to_do_next(
    work: Path, capsys: pytest.CaptureFixture[str]
):
    said = Said(capsys, "search", "job.toml", "--device", "cpu")
    assert said.code == 0, said.err
    assert "trial 1 (1 of 2 done): learning_rate 0.01" in said.err
    table = said.out.splitlines()
    assert table[0].split()[:3] == ["number", "state", "learning"]
    assert len({len(line) for line in table[:3]}) == 1
    assert re.match(r" +[01]  complete +0\.01? +", table[1].replace("0.001", "0.01"))
    best = re.search(r"best +trial ([01]), as job file in runs/rates/best\.toml", said.out)
    checkpoint = f"runs/rates/trial-000{best[1]}/best.pt"
    assert f"wsi-idc eval --checkpoint {checkpoint}" in said.out
    assert (work / "runs/rates/search.png").read_bytes().startswith(b"\x89PNG")

    said = Said(capsys, "search", "job.toml", "--json", "-q")
    assert (said.code, said.err) == (0, "")
    found = json.loads(said.out)
    assert (found["metric"], found["running_elsewhere"]) == ("average_precision", 0)
    assert found["trials"][0]["number"] == found["best"]["number"]
    assert found["best"]["checkpoint"] == checkpoint
    assert found["best"]["config"]["model"] == "cnn"
    assert Said(capsys, "eval", "--checkpoint", checkpoint).code == 0

    said = Said(capsys, "job", "runs/rates/best.toml", "--device", "cpu", "--json", "-q")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out)["run"] == "runs/rates-best"
    again, best = (
        load_checkpoint(Path(json.loads(said.out)["checkpoint"])),
        load_checkpoint(Path(checkpoint)),
    )
    assert all(again.state[name].equal(value) for name, value in best.state.items())


def test_a_job_may_be_a_search(work: Path, capsys: pytest.CaptureFixture[str]):
    (work / "job.toml").write_text(JOB.replace("RATE", "nan"))
    said = Said(capsys, "job", "job.toml")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("Error: job.toml: ")


def test_failed_trials_are_listed_at_the_end(work: Path, capsys: pytest.CaptureFixture[str]):
    (work / "job.toml").write_text(JOB.replace("RATE", "1e9"))
    said = Said(capsys, "search", "job.toml", "--out", "here", "--device", "cpu")
    assert said.code == 1
    assert said.error == "Error: 1 of 2 trials failed: 1; the reasons are above"
    assert "trial 1 failed: the loss is not finite in epoch 1" in said.err
    assert "best        trial 0" in said.out
    assert (work / "here" / "trials.csv").exists()


def test_a_bad_job_is_one_line_and_writes_nothing(work: Path, capsys: pytest.CaptureFixture[str]):
    (work / "job.toml").write_text(JOB.replace("RATE", "'fast'"))
    said = Said(capsys, "search", "job.toml")
    assert said.code == 1
    assert said.error == "Error: job.toml: axis learning_rate must be a number, not 'fast'"
    (work / "job.toml").write_text('command = "train"')
    assert (
        'no search; give a file with command = "search"' in Said(capsys, "search", "job.toml").error
    )
    assert not (work / "runs").exists()
