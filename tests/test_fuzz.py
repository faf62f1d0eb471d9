"""Damaged files cause no traceback, hang, crash or lack of memory; mutations of tools/fuzz.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MUTATIONS = 5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
def test_no_damaged_file_causes_a_bug(tmp_path: Path):
    found = subprocess.run(
        [
            *(sys.executable, REPOSITORY / "tools/fuzz.py", "--mutations", str(MUTATIONS)),
            *("--failures", tmp_path / "failures"),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    reasons = "".join(path.read_text() for path in tmp_path.rglob("why.txt"))
    assert found.returncode == 0, found.stdout + reasons + found.stderr
    rows = [line.strip("| ").split(" | ") for line in found.stdout.splitlines()[2:]]
    assert len(rows) == 18
    for name, total, valid, refused, *bad in rows:
        assert int(total) == int(valid) + int(refused) == MUTATIONS, name
        assert set(bad) == {"0"}, name
