"""The scripts in examples/ run, and the README shows their lines."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).parents[1]
OWN_SLIDES = REPOSITORY / "examples" / "own_slides.sh"


def test_the_readme_shows_the_lines_of_the_script():
    def lines(text: str) -> list[str]:
        text = re.sub(r" \\\n +", " ", text)
        found = re.findall(r"^ *(wsi-idc .*?)(?: \"\$@\")?(?: +#.*)?$", text, re.MULTILINE)
        return [line.strip() for line in found]

    section = (REPOSITORY / "README.md").read_text().partition("## Train on your own slides")[2]
    shown = lines(section.partition("\n## ")[0])
    assert [line.split()[1] for line in shown][:3] == ["synth", "prepare", "train"]
    assert shown == lines(OWN_SLIDES.read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_own_slides(tmp_path: Path):
    """Run all steps on 9 slides of 8 patients, of which one has two slides."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY)}
    script = tmp_path / "own_slides.sh"
    # The third epoch is the best one here; seven more would take most of the time.
    script.write_text(OWN_SLIDES.read_text().replace("--epochs 10", "--epochs 3"))
    result = subprocess.run(
        ["bash", script, "--num-slides", "9", "--num-patients", "8"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    made = tmp_path / "own-slides"
    (metrics,) = made.glob("runs/*/eval-test/metrics.json")
    assert json.loads(metrics.read_text())["metrics"]["auc"] > 0.9
    slides = pd.read_csv(made / "data" / "scans_slides.csv", dtype=str)
    assert len(slides) == 9
    assert slides["reason"].isna().all()
    cohort = pd.read_csv(made / "maps" / "cohort.csv")
    assert len(cohort) == 9
    assert cohort["dice"].between(0, 1).all()
    assert len(pd.read_csv(made / "maps" / "patients.csv")) == 8
    for name in ("S0001/S0001-1", "S0001/S0001-2", "S0003", "S0008"):
        assert (made / "maps" / f"{name}.h5").exists()
        assert (made / "export" / f"{name}.geojson").exists()
        assert (made / "report" / f"{name}.html").exists()
    assert (made / "data" / "scans_slides" / "S0003" / "S0003-1.ome.png").exists()
    assert (made / "report" / "index.html").exists()
