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


@pytest.fixture
def work(small: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working folder with the small pack in data/, and change into it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "small.h5").symlink_to(small.path)
    monkeypatch.chdir(tmp_path)
    run(_TRAIN, "--out", "runs/old")
    return tmp_path


def run(line: str, *words: str, kill_at: int = 0) -> None:
    """Run a command line; kill it before this rename or removal, or let it end."""
    hook = Path("hook.py")
    hook.write_text(_HOOK)
    os.environ["KILL_AT"] = str(kill_at)
    command = Command(*line.split(), *words, hook=hook.absolute())
    assert command.wait() == (-signal.SIGKILL if kill_at else 0), command.text()


def files(folder: str) -> dict[str, bytes]:
    """Return the bytes of each file in a folder that is no lock."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_killed_training_keeps_the_finished_run_that_it_replaces(work: Path):
    run(_TRAIN, "--out", "runs/expected", "--seed", "1")
    old = Path("runs/old/best.pt").read_bytes()
    # After one, two and five of the old files; at the end of the training.
    for kill_at in (2, 3, 6, 14):
        run(_TRAIN, "--out", "runs/old", "--seed", "1", "--overwrite", kill_at=kill_at)
        assert old in files("runs/old").values()
    run(_TRAIN, "--out", "runs/old", "--seed", "1", "--overwrite")
    assert names(Path("runs/old")) == names(Path("runs/expected"))
    actual, expected = (load_checkpoint(Path(f"runs/{n}/best.pt")) for n in ("old", "expected"))
    torch.testing.assert_close(actual.state, expected.state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("line", "last", "kills"),
    [
        ("export --format wsinfer --checkpoint runs/old --out out", "config.json", (2, 3, 4)),
        pytest.param("explore --out out", "summary.json", (20,), marks=pytest.mark.slow),
    ],
)
def test_a_killed_command_leaves_no_mixture(
    work: Path, line: str, last: str, kills: tuple[int, ...]
):
    run(line)
    expected = files("out")
    for kill_at in kills:
        Path("out", last).write_text('"old"')
        run(line, kill_at=kill_at)
        assert last not in files("out")
    run(line)
    assert files("out") == expected
