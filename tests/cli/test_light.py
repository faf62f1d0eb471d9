"""Commands that need no network answer without importing torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.packs import save_png
from tests.small_maps import write_hand_map
from wsi_idc.data.pack import Pack
from wsi_idc.maps.cohort import write_cohort_h5
from wsi_idc.models.checkpoint import Checkpoint, save_checkpoint

# Run each command line of standard input in a child in which heavy libraries cannot be imported.
SERVER = """
import io, json, os, sys, time
import h5py, numpy, pandas
from wsi_idc.cli.main import group, run

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "matplotlib", "bokeh", "optuna", "torchcam"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Guard())
for line in sys.stdin:
    sys.stdout.flush()
    read, write = os.pipe()
    if os.fork() == 0:
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        code = run(lambda: group.main(json.loads(line), standalone_mode=False))
        answer = [code, sys.stdout.getvalue(), sys.stderr.getvalue(), time.process_time()]
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    sys.stdout.write(os.fdopen(read).read() + "\\n")
"""
TRAIN_JOB = 'command = "train"\n[config]\nepochs = 1\n'
MAP_JOB = 'command = "map"\n[config]\nall = true\n'

# Command line, exit code, and a part of the output.
CASES = [
    ("--help", 0, "Research use only"),
    ("map --help", 0, "Make maps of patients or slides"),
    ("info data/cohort.h5", 0, "pack"),
    ("info maps/P1.h5", 0, "map"),
    ("info cohort.h5", 0, "cohort"),
    ("info scan.png", 0, "slide"),
    ("map --all --shard 9/8", 1, "shard '9/8' is not I/N with I from 1 to N"),
    ("eval runs/none", 1, "runs/none: no such file; give a finished run or a .pt file"),
    ("eval runs/none runs/no2", 1, "2 of 2 runs are not evaluated"),
    ("info none.h5", 1, "none.h5: no such file"),
    ("info none.pt", 1, "none.pt: no such file"),
    ("info text.pt", 1, "text.pt: not a readable checkpoint"),
    ("status map.toml", 0, "6 maps exist"),
    ("status train.toml", 0, "not begun"),
    ("status none.toml", 1, "none.toml"),
    ("job map.toml --dry-run", 0, "wsi-idc map --all"),
    ("map", 2, "give patients (PATIENT"),
    ("map --patient nosuch", 1, "no patient 'nosuch'"),
    ("map --patient S0001 --data none.h5", 1, "none.h5: no such file"),
    ("map --patient S0001 --checkpoint none.pt", 1, "none.pt: no such file"),
    ("map --patient S0001 --checkpoint text.pt", 1, "text.pt: not a readable checkpoint"),
    ("map --all --checkpoint data", 1, "data: no best.pt in this folder"),
    ("features", 2, "give patients (PATIENT"),
    ("features --patient nosuch", 1, "no patient 'nosuch'"),
    ("features --all --checkpoint none.pt", 1, "none.pt: no such file"),
    ("eval runs/nosuch", 1, "runs/nosuch: no such file"),
    ("eval --checkpoint none.pt", 1, "none.pt: no such file"),
    ("eval --checkpoint bundled --data none.h5", 1, "none.h5: no such file"),
    ("eval runs/a runs/b --data text.pt", 1, "runs/b is not evaluated: runs/b: no such file"),
    ("eval bundled runs/b --data text.pt", 1, "text.pt: not an HDF5 file"),
    ("compare runs/a runs/b", 1, "runs/a: no such file"),
    ("export --format wsinfer --checkpoint none.pt", 1, "none.pt: no such file"),
    ("report empty", 1, "no maps in empty"),
    ("view none", 1, "none: no such file, and no patient of this name in maps/"),
    ("view empty", 1, "empty: no slides in this folder"),
    ("render empty", 1, "no maps in empty"),
    ("export empty", 1, "no maps in empty"),
    ("train --epochs 0", 1, "epochs is 0"),
    ("train --data none.h5", 1, "none.h5: no such file"),
    ("train --data text.pt", 1, "text.pt: not an HDF5 file"),
    ("train --split none.csv", 1, "none.csv: no such file"),
    ("train --split kfold:5/9", 1, "kfold:5/9: the number of folds"),
    ("train --weights none.pt", 1, "--weights none.pt: No such file"),
    ("search none.toml", 1, "none.toml"),
    ("explore --data none.h5", 1, "none.h5: no such file"),
    ("prepare none", 1, "none"),
    ("bench train --epochs 0", 1, "epochs is 0"),
]


def run_lines(commands: list[str], folder: Path) -> dict[str, list[Any]]:
    """Return exit code, standard output, standard error and CPU seconds of each command line."""
    lines = "".join(json.dumps(command.split()) + "\n" for command in commands)
    program = [sys.executable, "-c", SERVER]
    options = {"cwd": folder, "capture_output": True, "text": True, "timeout": 240}
    done = subprocess.run(program, input=lines, **options)
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.fixture(scope="module")
def answers(cohort: Pack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Run all command lines in a folder with a file of each kind."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "data").mkdir()
    (folder / "empty").mkdir()
    shutil.copy(cohort.path, folder / "data")
    map_path = write_hand_map(folder / "maps", patient="P1")
    row = {"patches": 6, "area_mm2": 0.25, "idc_area_mm2": 0.125, "idc_fraction": 0.5}
    table = pd.DataFrame([{"patient": "P1", **row}])
    write_cohort_h5(folder / "cohort.h5", table, {"P1": map_path})
    save_png(folder / "scan.png", np.zeros((30, 40, 3), np.uint8))
    (folder / "text.pt").write_text("no checkpoint")
    (folder / "map.toml").write_text(MAP_JOB)
    (folder / "train.toml").write_text(TRAIN_JOB)
    before = sorted(folder.rglob("*"))
    answers = run_lines([command for command, _, _ in CASES], folder)
    assert sorted(folder.rglob("*")) == before
    return answers


@pytest.mark.parametrize(("command", "code", "fragment"), CASES, ids=[case[0] for case in CASES])
def test_answer_without_torch(answers: dict, command: str, code: int, fragment: str):
    found_code, out, err, seconds = answers[command]
    assert (found_code, "Traceback" in err) == (code, False), err
    assert sum(line.startswith("Error: ") for line in err.splitlines()) == (code > 0)
    assert fragment in out + err
    assert seconds < 2  # CPU time of the command; half as much on an idle machine


def test_no_data_is_an_error_before_torch(tmp_path: Path):
    for answer in run_lines(["train", "map --all", "explore", "eval"], tmp_path).values():
        assert "no data: there is no data here; make a pack with" in answer[2]


def test_help_imports_no_library_of_numbers():
    code = (
        "import sys; from wsi_idc.cli.main import group\n"
        "try: group.main(['--help'], prog_name='wsi-idc')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'h5py', 'cv2', 'tqdm', 'matplotlib', 'sklearn'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_map_with_an_own_network_imports_no_library_that_it_does_not_use(
    cohort: Pack, trained: Checkpoint, tmp_path: Path
):
    save_checkpoint(tmp_path / "c.pt", trained)
    words = ["map", cohort.patients[0], "--data", str(cohort.path), "--checkpoint", "c.pt"]
    script = f"""
import sys
from wsi_idc.cli.main import group
group.main({words!r}, standalone_mode=False)
print(*sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    imported = set(result.stdout.splitlines()[-1].split())
    # Each of these takes from a half to four seconds of CPU time.
    heavy = {"torchvision", "torch._dynamo", "sklearn", "sympy", "matplotlib", "bokeh", "optuna"}
    assert {"torch", "h5py"} <= imported
    assert not imported & heavy
