"""A compute node has no network: all but two commands must not ask for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.one_trial import ONE_TRIAL
from wsi_idc.data.pack import Pack

# Loaded by every Python process, those that the program starts too.
SITECUSTOMIZE = """
import os, sys

def refuse(event, arguments):
    asks = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
    if asks or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        with open(os.environ["ASKED_FOR"], "a") as file:
            file.write(f"{sys.argv}: {event} {arguments}\\n")
        raise OSError(101, "Network is unreachable")

sys.addaudithook(refuse)
"""
TRAIN = ["train", "--epochs", 1, "--batch-size", 32, "--split", "ratio:50/25/25"]


class Node:
    """A machine without network, and what was asked of it all the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._asked_for = folder / "asked-for.txt"
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def run(self, *words: object) -> "subprocess.CompletedProcess[str]":
        """Run the program."""
        path = os.pathsep.join([str(self.folder / "site"), *sys.path[1:]])
        return subprocess.run(
            [sys.executable, "-m", "wsi_idc", *map(str, words)],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": path, "ASKED_FOR": str(self._asked_for)},
            capture_output=True,
            text=True,
            timeout=240,
        )

    @property
    def asked_for(self) -> str:
        """What connections were tried."""
        return self._asked_for.read_text() if self._asked_for.exists() else ""


@pytest.fixture
def node(tmp_path: Path, cohort: Pack) -> Node:
    (tmp_path / "data").mkdir()
    shutil.copy(cohort.path, tmp_path / "data")
    (tmp_path / "job.toml").write_text(ONE_TRIAL)
    return Node(tmp_path)


@pytest.mark.slow
def test_all_work_is_done_without_network(node: Node):
    rest = (["eval"], ["map", "--all"], ["report"], ["doctor"])
    for words in (TRAIN, ["search", "job.toml"], *rest):
        done = node.run(*words)
        assert done.returncode == 0, done.stderr
    assert node.asked_for == ""
    assert len(list((node.folder / "maps").glob("S*.h5"))) == 6


def test_weights_that_are_not_there_are_an_error_and_not_a_download(node: Node):
    done = node.run(*TRAIN, "--model", "resnet18", "--weights", "imagenet")
    assert done.returncode == 1
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("Error: ")]
    assert "ImageNet weights of resnet18 are not on this machine" in line
    assert "wsi-idc fetch-weights resnet18" in line
    assert node.asked_for == ""
    assert not (node.folder / "runs").exists()


def test_what_is_there_to_download_asks_for_the_network(node: Node):
    done = node.run("fetch-weights", "resnet18")
    assert done.returncode == 1
    assert "Error: could not fetch https://download.pytorch.org/" in done.stderr
    assert "socket.getaddrinfo" in node.asked_for
