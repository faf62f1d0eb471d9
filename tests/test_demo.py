from pathlib import Path

from tests.cli.commands import run_command
from wsi_idc import demo


def test_the_demo_runs_every_step_once_and_prints_what_is_next(tmp_path, monkeypatch, capsys):
    for name, value in [("NUM_PATIENTS", 6), ("PATCHES_PER_PATIENT", 40), ("EPOCHS", 1)]:
        monkeypatch.setattr(demo, name, value)
    monkeypatch.chdir(tmp_path)
    result = run_command(capsys, "demo")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert "  maps        wsi-idc-demo/maps/*.h5, one for each patient" in lines
    assert "  wsi-idc prepare TREE" in lines
    assert lines[-1] == "Research use only: no output of this program is a diagnosis."

    times = {path: path.stat().st_mtime_ns for path in Path("wsi-idc-demo/maps").glob("S*.h5")}
    again = demo.run_demo(Path("wsi-idc-demo"))
    assert f"AUC {again.evaluation.final.metrics['auc']:.3f} [" in result.out
    assert all(path.exists() for path in (again.pack, again.checkpoint, again.report))
    assert (again.evaluation_folder / "metrics.json").exists()
    assert (again.evaluation_folder / "report.html").exists()
    assert len(list(again.report.parent.glob("S*.html"))) == 6
    names = sorted(path.name for path in again.maps.glob("S*"))
    assert names == [f"S000{n}.{end}" for n in range(1, 7) for end in ("h5", "png")]
    assert {path: path.stat().st_mtime_ns for path in again.maps.glob("S*.h5")} == times
