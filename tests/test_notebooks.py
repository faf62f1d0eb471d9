"""Every notebook is kept without outputs, and runs from a clean clone on the synthetic cohort.

What a notebook shows is held by the assertions of its own last cell.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from wsi_idc.demo import small_checkpoint, synthetic_pack

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
# How many pictures each draws at least: one that draws none any more still runs.
PICTURES = {
    "01_explore_data": 7,
    "02_train_and_compare": 6,
    "03_evaluate": 6,
    "04_view_maps": 4,
    "05_gradcam": 4,
    "06_slide": 4,
    "07_own_slides": 2,
}


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the work of a reader who has run the first notebooks: a cohort and a checkpoint."""
    work = tmp_path_factory.mktemp("notebooks") / "work"
    small_checkpoint(work, synthetic_pack(work))
    return work


@pytest.fixture(scope="session")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder where matplotlib keeps its list of fonts, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("matplotlib")
    # Made here, because matplotlib prints a message in a notebook if it takes 5 seconds.
    make = [sys.executable, "-c", "import matplotlib.font_manager"]
    subprocess.run(make, env=os.environ | {"MPLCONFIGDIR": str(folder)}, check=True)
    return folder


def test_there_are_seven():
    assert list(PICTURES) == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_kept_as_it_should_be(path: Path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert ids[:2] == ["title", "setup"]
    assert ids[-1] == "check"
    first = notebook.cells[0].source
    assert "Research use only, never a diagnosis" in first
    assert "It takes about" in first
    for cell in notebook.cells:
        if cell.cell_type == "code":
            how = f"{path.name} holds outputs; jupyter nbconvert --clear-output --inplace it"
            assert cell.outputs == [] and cell.execution_count is None, how
    assert "/home/" not in path.read_text() and "/root/" not in path.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs(
    path: Path, made: Path, fonts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MPLCONFIGDIR", str(fonts))
    monkeypatch.setenv("WSI_IDC_NOTEBOOK_EPOCHS", "2")
    monkeypatch.delenv("WSI_IDC_SLIDE", raising=False)
    shutil.copytree(made, tmp_path / "work")
    notebook = read(path)
    run(notebook, tmp_path)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) >= PICTURES[path.stem]
    said = [out.text for out in outputs if out.output_type == "stream" and out.name == "stderr"]
    assert said == []  # a warning would be shown to the reader


@pytest.mark.slow
def test_a_notebook_whose_last_cell_finds_something_wrong_fails(tmp_path: Path):
    notebook = read(NOTEBOOKS[0])
    last = nbformat.v4.new_code_cell("assert 1 + 1 == 3")
    notebook.cells = [last]
    with pytest.raises(CellExecutionError, match="assert 1 \\+ 1 == 3"):
        run(notebook, tmp_path)


def run(notebook: NotebookNode, folder: Path) -> None:
    """Execute a notebook in ``folder``; its outputs are then in it."""
    where = {"metadata": {"path": str(folder)}}
    # On a busy machine a kernel may take long to start; pytest's own limit ends what hangs.
    NotebookClient(
        notebook, timeout=None, startup_timeout=300, kernel_name="python3", resources=where
    ).execute()
