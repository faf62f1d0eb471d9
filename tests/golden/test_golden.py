"""Files that released versions wrote are read, and say what they said then."""

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from wsi_idc.core.errors import WsiIdcError
from wsi_idc.metrics.bootstrap import FEW_PATIENTS

HERE = Path(__file__).parent
VERSIONS = sorted(path.parent.name for path in HERE.glob("*/expected.json"))
# Of what the network computes: another machine or torch adds in another order.
EXACT = {"rel": 0.0, "abs": 0.0}
COMPUTED = {"rel": 1e-4, "abs": 1e-5}
ROUNDING = {"rel": 1e-6, "abs": 1e-9}


def _load_tool() -> ModuleType:
    path = HERE.parents[1] / "tools/golden.py"
    spec = importlib.util.spec_from_file_location("golden", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


golden = _load_tool()


@pytest.fixture(params=VERSIONS)
def expected(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Copy a version's golden files to a working folder and return what is expected of them."""
    work = tmp_path / "golden"
    golden.unpack(HERE / request.param, work)
    monkeypatch.chdir(work)
    found: dict[str, Any] = json.loads(Path("expected.json").read_text(encoding="utf-8"))
    return found


def assert_close(found: Any, wanted: Any, tolerance: dict[str, float], place: str = "") -> None:
    """Assert that two JSON values agree: numbers within a tolerance, all else exactly.

    A dict in ``found`` may have additional keys.
    """
    if isinstance(wanted, dict):
        assert isinstance(found, dict), place
        assert [key for key in found if key in wanted] == list(wanted), place
        for key, value in wanted.items():
            assert_close(found[key], value, tolerance, f"{place}/{key}")
    elif isinstance(wanted, list):
        assert isinstance(found, list), place
        assert len(found) == len(wanted), place
        for number, value in enumerate(wanted):
            assert_close(found[number], value, tolerance, f"{place}/{number}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, **tolerance), place
    else:
        assert found == wanted, place


def test_there_are_golden_files():
    assert "0.1.0" in VERSIONS


def test_every_file_is_read_as_before(expected: dict[str, Any]):
    found = golden.describe_files()
    for name in ("patient", "arrays", "checkpoint", "status"):  # stored: exact
        assert_close(found[name], expected[name], EXACT, name)
    for name in ("info", "cohort", "compare"):  # computed from what is stored
        assert_close(found[name], expected[name], ROUNDING, name)
    assert_close(found["predictions"], expected["predictions"], COMPUTED)


def test_a_finished_training_is_not_repeated(expected: dict[str, Any]):
    before = Path("run/best.pt").read_bytes()
    found = golden.answer(*golden.TRAIN)
    assert found["was_finished"] is True
    assert found["threshold"] == expected["checkpoint"]["threshold"]
    assert Path("run/best.pt").read_bytes() == before


def test_maps_are_kept(expected: dict[str, Any]):
    patient = expected["patient"]
    path = Path("maps", f"{patient}.h5")
    before = path.read_bytes()
    found = golden.answer(*golden.map_patient(patient))
    assert (found["made"], found["kept"]) == ({}, {patient: str(path)})
    assert path.read_bytes() == before


@pytest.mark.usefixtures("expected")
def test_a_map_of_an_older_segmentation_is_not_replaced():
    path = Path("maps", "slide.h5")
    before = path.read_bytes()
    with pytest.raises(WsiIdcError, match="1 of 1 maps were not made: slide"):
        golden.answer(*golden.MAP_SLIDE)
    assert path.read_bytes() == before


def test_a_new_map_has_the_same_content(expected: dict[str, Any]):
    patient = expected["patient"]
    for name, words in ((patient, golden.map_patient(patient)), ("slide", golden.MAP_SLIDE)):
        assert list(golden.answer(*words, "--out", "new")["made"]) == [name]
        before = golden.map_values(Path("maps", f"{name}.h5"))
        now = golden.map_values(Path("new", f"{name}.h5"))
        assert list(now) == list(before)
        for key, values in before.items():
            if values is None:
                assert now[key] is None, key
            elif key in ("tissue", "thumbnail"):  # larger and found otherwise since 0.1.0
                shown = np.asarray(now[key], np.uint8)
                small = cv2.resize(shown, values.shape[1::-1], interpolation=cv2.INTER_AREA)
                assert np.abs(small.astype(float) - values).mean() < 0.05 * values.max(), key
            elif values.dtype.kind == "f":
                np.testing.assert_allclose(now[key], values, rtol=1e-4, atol=1e-4, err_msg=key)
            else:
                np.testing.assert_array_equal(now[key], values, err_msg=key)


def test_evaluations_are_not_repeated(expected: dict[str, Any]):
    before = Path("run/eval-test/metrics.json").read_bytes()
    found = golden.answer("compare", "run", "run", "--data", "pack.h5", "--device", "cpu")
    assert Path("run/eval-test/metrics.json").read_bytes() == before
    wanted = [row["a"] for row in expected["compare"]["metrics"]]
    assert [row["a"] for row in found["metrics"]] == pytest.approx(wanted)


def test_a_new_evaluation_has_the_same_metrics(expected: dict[str, Any]):
    golden.command(*golden.EVAL, "--out", "new")
    before, now = (
        json.loads(Path(folder, "metrics.json").read_text(encoding="utf-8"))
        for folder in ("run/eval-test", "new")
    )
    assert list(now) == list(before)
    now["notes"].remove(FEW_PATIENTS)  # new since 0.1.0
    for record in (before, now):
        del record["provenance"]
    assert_close(now, before, COMPUTED)


def test_a_map_is_exported_and_drawn(expected: dict[str, Any]):
    name = expected["patient"]
    golden.command("export", f"maps/{name}.h5", "--format", "csv", "--out", "new")
    before, now = (_rows(Path(folder, f"{name}.csv")) for folder in ("export", "new"))
    assert {row.pop() for row in now} == {"source_file", "pack.h5"}  # new since 0.1.0
    assert_close(now, before, ROUNDING)
    golden.command("render", f"maps/{name}.h5", "--out", "pictures")
    assert [path.suffix for path in Path("pictures").iterdir()] == [".png"]


def _rows(path: Path) -> list[list[Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [[_number(cell) for cell in row] for row in csv.reader(file)]


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
