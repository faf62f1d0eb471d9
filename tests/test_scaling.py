"""The simulation is right where it is plain, and docs/scaling.md has its table."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]


def _tool():
    path = REPOSITORY / "tools/simulate_cluster.py"
    spec = importlib.util.spec_from_file_location("simulate_cluster", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_document_has_the_table_of_the_command():
    table = _tool().table(rate=8_000, disk=5_000)
    assert table in (REPOSITORY / "docs/scaling.md").read_text()


def test_the_rate_of_two_cores_is_the_measured_one():
    rate = f"{_tool().MEASURED.rate:,}"
    assert f"| map | cnn-bn at 50 px | {rate} |" in (REPOSITORY / "docs/performance.md").read_text()
    assert f"{rate} patches/s of cnn-bn" in (REPOSITORY / "docs/scaling.md").read_text()


def test_a_plain_cohort_takes_what_arithmetic_says():
    tool = _tool()
    slides = tool.Slides(np.full(8, 3600), np.full(8, 36.0))
    found = tool.simulate(slides, tool.Cluster(2, rate=100, disk=1e9, node=1e9, start=0))
    assert found["hours"] == pytest.approx(4 * 36 / 3600)
    assert found["busy"] == pytest.approx(1)
    # Each of the two has half of 1 MB/s: 72 s to read a slide, and its map to write.
    found = tool.simulate(slides, tool.Cluster(2, rate=100, disk=1, node=9, start=0))
    write = 3600 * tool.MAP_BYTES / 1e6 / 0.5
    assert found["hours"] == pytest.approx(4 * (72 + write) / 3600)
    assert found["waits for"] == "the shared disk"
