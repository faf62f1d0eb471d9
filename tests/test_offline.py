"""A compute node has no network: only download and fetch-weights use it."""

import os
from pathlib import Path

import pytest

from tests.cli.commands import Command
from tests.one_trial import ONE_TRIAL
from wsi_idc.data.pack import Pack

# Executed by the process of each command; Python processes that it starts import it.
SITECUSTOMIZE = """
import os, sys

def refuse(event, arguments):
    is_lookup = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
    if is_lookup or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        with open(os.environ["REQUESTS"], "a") as file:
            file.write(f"{sys.argv}: {event} {arguments}\\n")
        raise OSError(101, "Network is unreachable")

sys.addaudithook(refuse)
"""
TRAIN = ["train", "--epochs", 1, "--batch-size", 32, "--split", "ratio:50/25/25"]


class Node:
    """A machine without network, in the working folder, that records connection attempts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests = folder / "requests.txt"
        self.requests.touch()
        self._hook = folder / "sitecustomize.py"
        self._hook.write_text(SITECUSTOMIZE)
        monkeypatch.setenv("REQUESTS", str(self.requests))
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        monkeypatch.setenv("PYTHONPATH", path)

    def run(self, *words: object) -> tuple[int | None, str]:
        """Run a command line; return its exit code and its output."""
        command = Command(*words, hook=self._hook)
        return command.wait(240), command.text()


@pytest.fixture
def node(tmp_path: Path, small: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> Node:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "small.h5").symlink_to(small.path)
    (tmp_path / "job.toml").write_text(ONE_TRIAL)
    monkeypatch.chdir(tmp_path)
    return Node(tmp_path_factory.mktemp("site"), monkeypatch)


@pytest.mark.slow
def test_all_work_is_done_without_network(node: Node):
    rest = (
        ["eval", "--num-resamples", 100],
        ["map", "--all"],
        ["report", "maps/p0.h5"],
        ["doctor"],
    )
    for words in (TRAIN, ["search", "job.toml"], *rest):
        code, output = node.run(*words)
        assert code == 0, output
    assert node.requests.read_text() == ""
    assert len(list(Path("maps").glob("p*.h5"))) == 4


def test_missing_weights_are_an_error_and_not_a_download(node: Node):
    code, output = node.run(*TRAIN, "--model", "resnet18", "--weights", "imagenet")
    assert code == 1
    (line,) = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert "ImageNet weights of resnet18 are not on this machine" in line
    assert "wsi-idc fetch-weights resnet18" in line
    assert node.requests.read_text() == ""
    assert not Path("runs").exists()


def test_a_download_asks_for_the_network(node: Node):
    code, output = node.run("fetch-weights", "resnet18")
    assert code == 1
    assert "Error: could not fetch https://download.pytorch.org/" in output
    assert "socket.getaddrinfo" in node.requests.read_text()
