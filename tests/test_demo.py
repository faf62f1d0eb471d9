from pathlib import Path

import pytest

from wsi_idc import demo


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NUM_PATIENTS", 6)
    monkeypatch.setattr(demo, "PATCHES_PER_PATIENT", 40)
    monkeypatch.setattr(demo, "EPOCHS", 1)


@pytest.mark.usefixtures("small")
def test_the_demo_runs_every_step_once(tmp_path: Path):
    result = demo.run_demo(tmp_path / "demo")
    assert result.pack.exists()
    assert result.checkpoint.exists()
    assert (result.evaluation_folder / "metrics.json").exists()
    assert (result.evaluation_folder / "report.html").exists()
    assert result.report.exists()
    assert len(list(result.report.parent.glob("S*.html"))) == 6
    names = sorted(path.name for path in result.maps.glob("S*"))
    assert names == [f"S000{n}.{end}" for n in range(1, 7) for end in ("h5", "png")]
    times = {path: path.stat().st_mtime_ns for path in result.maps.glob("S*.h5")}
    again = demo.run_demo(tmp_path / "demo")
    assert again.evaluation.final.metrics == result.evaluation.final.metrics
    assert {path: path.stat().st_mtime_ns for path in result.maps.glob("S*.h5")} == times
