"""Kill commands that replace an older output, at exact file operations."""

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.cli.commands import Command
from tests.packs import names
from wsi_idc.data.pack import Pack
from wsi_idc.models.checkpoint import load_checkpoint

# Kill the process before its KILL_AT-th rename or removal of a file in the working folder.
_HOOK = """
import os, signal, sys
count, folder = 0, os.getcwd()
def kill(event, arguments):
    global count
    if event in ("os.rename", "os.remove") and os.path.abspath(arguments[0]).startswith(folder):
        count += 1
        if count == int(os.environ["KILL_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
"""
_TRAIN = "train --model cnn-bn --epochs 1 --batch-size 16 --device cpu --split ratio:50/25/25"


@pytest.fixture(autouse=True)
def work(small: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a working folder with the small pack in data/, and change into it."""
    (tmp_path / "data").symlink_to(small.path.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KILL_AT", "0")  # give the variable back after the test
    run(f"{_TRAIN} --out runs/old")


def run(line: str, *, kill_at: int = 0) -> None:
    """Run a command line; kill it before this rename or removal, or let it end."""
    Path("hook.py").write_text(_HOOK)
    os.environ["KILL_AT"] = str(kill_at)
    command = Command(*line.split(), hook=Path("hook.py").absolute())
    assert command.wait() == (-signal.SIGKILL if kill_at else 0), command.text()


def files(folder: str) -> dict[str, bytes]:
    """Return the bytes of each file in a folder that is no lock."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_killed_training_keeps_the_finished_run_that_it_replaces():
    run(f"{_TRAIN} --out runs/expected --seed 1")
    old = Path("runs/old/best.pt").read_bytes()
    for kill_at in (2, 3, 6, 14):
        run(f"{_TRAIN} --out runs/old --seed 1 --overwrite", kill_at=kill_at)
        assert old in files("runs/old").values()
    run(f"{_TRAIN} --out runs/old --seed 1 --overwrite")
    assert names(Path("runs/old")) == names(Path("runs/expected"))
    actual, expected = (load_checkpoint(Path(f"runs/{n}/best.pt")) for n in ("old", "expected"))
    torch.testing.assert_close(actual.state, expected.state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("line", "last", "kills"),
    [
        ("export --format wsinfer --checkpoint runs/old --out out", "config.json", [2, 3, 4]),
        pytest.param("explore --out out", "summary.json", [20], marks=pytest.mark.slow),
    ],
)
def test_a_killed_command_leaves_no_mixture(line: str, last: str, kills: list[int]):
    run(line)
    expected = files("out")
    for kill_at in kills:
        Path("out", last).write_text('"old"')
        run(line, kill_at=kill_at)
        assert last not in files("out")
    run(line)
    assert files("out") == expected
