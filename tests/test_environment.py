"""The whole program in a process with a hostile environment: streams, folders, settings, limits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_maps import write_hand_map
from wsi_idc.data.pack import Pack

REPOSITORY = Path(__file__).parents[1]
PROGRAM = (sys.executable, "-m", "wsi_idc")
MATPLOTLIBRC = "image.origin: lower\ntext.usetex: True\nsavefig.bbox: tight\naxes.grid: True\n"


def run_shell(folder: Path, script: str, *arguments: object, **variables: str) -> tuple[int, str]:
    """Run a line of bash, whose "$@" are the arguments; return the exit code and all output."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    result = subprocess.run(
        ["bash", "-c", script, "bash", *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    return result.returncode, result.stdout


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_settings_and_closed_streams_of_a_user_change_no_figure(cohort: Pack, tmp_path: Path):
    explore = (*PROGRAM, "explore", "--data", cohort.path, "--out")
    assert run_shell(tmp_path, '"$@"', *explore, "plain")[0] == 0
    (tmp_path / "matplotlibrc").write_text(MATPLOTLIBRC)
    closed = '"$@" <&- >&- 2>&-'
    variables = {
        "MPLBACKEND": "module://matplotlib_inline.no_such_backend",
        "TQDM_MININTERVAL": "often",
    }
    assert run_shell(tmp_path, closed, *explore, "user", **variables) == (0, "")
    plain = files(tmp_path / "plain")
    assert len(plain) > 10
    assert plain == files(tmp_path / "user")


def test_variables_of_bokeh_change_no_page(tmp_path: Path):
    write_hand_map(tmp_path / "maps")
    report = (*PROGRAM, "report", "maps", "--out")
    assert run_shell(tmp_path, '"$@"', *report, "plain")[0] == 0
    loud = {"BOKEH_LOG_LEVEL": "loud", "BOKEH_RESOURCES": "cdn", "BOKEH_MINIFIED": "no"}
    code, output = run_shell(tmp_path, '"$@"', *report, "user", **loud)
    assert code == 0, output
    sizes = [
        {name: len(page) for name, page in files(tmp_path / folder).items()}  # ids are random
        for folder in ("plain", "user")
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('mkdir gone; cd gone; rmdir ../gone; "$@"', "the working folder was removed"),
        ('ulimit -v 400000; "$@"', "allow more memory"),
    ],
)
def test_an_unusable_environment_is_one_line(
    cohort: Pack, tmp_path: Path, script: str, message: str
):
    code, output = run_shell(tmp_path, script, *PROGRAM, "explore", "--data", cohort.path)
    assert code == 1
    assert output.count("\n") == 1
    assert output.startswith("Error: ")
    assert message in output
