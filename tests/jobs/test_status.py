"""How far tasks are, from files alone."""

import shutil
from pathlib import Path

import pytest

from tests.data.test_packed_slides import write_slide_pack
from wsi_idc.cli.job import open_job
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import make_split
from wsi_idc.jobs.slurm import queue_of
from wsi_idc.jobs.status import status_of
from wsi_idc.maps.plan import shard, sizes_of_patients
from wsi_idc.training.config import TrainConfig, resolved_config
from wsi_idc.training.runs import Run

from .test_job import write
from .test_slurm import fake


@pytest.fixture
def work(tmp_path: Path, cohort: Pack, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "maps").mkdir()
    shutil.copy(cohort.path, tmp_path / "data" / "idc.h5")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def states(folder: Path, text: str, command: str = "map") -> list[tuple[str, str]]:
    job = open_job(write(folder, f'command = "{command}"\n{text}'), [])
    return [(row.state, row.detail) for row in status_of(job)]


def test_maps_are_counted_a_shard(work: Path, cohort: Pack):
    second = shard(sizes_of_patients(cohort, cohort.patients), 2, 2)
    for patient in second:
        (work / "maps" / f"{patient}.h5").touch()
    (work / "maps/cohort.h5").touch()
    others = len(cohort.patients) - len(second)
    assert states(work, "tasks = 2\n[config]\nall = true\n") == [
        ("not begun", f"0 of {others} maps exist"),
        ("finished", f"{len(second)} of {len(second)} maps exist"),
    ]


def test_maps_of_packed_slides_are_counted(work: Path):
    write_slide_pack(work / "data" / "slides.h5")
    settings = '[config]\nall = true\ndata = "data/slides.h5"\n'
    assert states(work, settings) == [("not begun", "0 of 3 maps exist")]
    (work / "maps" / "7").mkdir()
    for name in ("7/one.h5", "7.h5"):
        (work / "maps" / name).touch()
    assert states(work, settings) == [("partly done", "1 of 3 maps exist")]


def test_patients_and_slides_by_name_are_counted(work: Path, cohort: Pack):
    one, two = cohort.patients[:2]
    (work / "ids.txt").write_text(f"{one}\n")
    (work / "maps" / f"{two}.h5").touch()
    settings = f'[config]\npatients_file = "ids.txt"\npatient = ["{two}"]\n'
    assert states(work, settings) == [("partly done", "1 of 2 maps exist")]
    (work / "a.tif").touch()
    assert states(work, '[config]\nslide = ["*.tif"]\n') == [("not begun", "0 of 1 maps exist")]
    (work / "slides.csv").write_text("slide,patient\na.tif,P\nb.tif,P\nc.tif,Q\n")
    for name in ("P.h5", "P/b.h5"):
        (work / "maps" / name).parent.mkdir(exist_ok=True)
        (work / "maps" / name).touch()
    several = '[config]\nmanifest = "slides.csv"\n'
    assert states(work, several) == [("partly done", "1 of 3 maps exist")]
    assert states(work, "") == [("unknown", "the job gives no patient or slide to map")]
    ((state, why),) = states(work, '[config]\npatient = ["none"]\n')
    assert (state, why[:19]) == ("unknown", "no patient 'none' i")
    (work / "data/idc.h5").unlink()
    assert states(work, "[config]\nall = true\n")[0][0] == "unknown"


def test_a_search_counts_its_trials(work: Path):
    text, folder = 'name = "s"\n[axes]\nseed = [0, 1, 2]\n', work / "runs/s"
    job = open_job(write(work, f'command = "search"\n{text}'), [])
    assert [vars(row) for row in status_of(job)] == [
        {"number": 1, "out": "runs/s", "state": "not begun", "detail": "3 trials"}
    ]
    Run(folder / "trial-0000").write("finished", {}, {})
    write(folder, "{}", "search.json")
    detail = "1 of 3 trials finished, 0 running"
    assert states(work, text, "search") == [("stopped", detail)]
    (folder / "trial-0001").mkdir()
    write(folder / "trial-0001", "{", "run.json")
    assert states(work, text, "search") == [("stopped", f"{detail}, 1 unknown")]
    for table, expected in (
        ("", "stopped"),
        ("0,complete\n1,running\n2,pruned\n", "stopped"),
        ("0,complete\n1,failed\n2,pruned\n", "finished"),
        ("0,\xff\n", "stopped"),
    ):
        (folder / "trials.csv").write_text(f"number,state\n{table}", encoding="latin-1")
        assert states(work, text, "search")[0][0] == expected


@pytest.mark.parametrize(
    ("settings", "folders"),
    [
        ("", ("runs/a/eval-test", "runs/more-eval-test")),
        ('tta = true\nsplit = "val"\n', ("runs/a/eval-val-tta", "runs/more-eval-val-tta")),
        ("tta = true\nsmooth = true\n", ("runs/a/eval-test-tta-smooth",)),
        ('out = "o"\n', ("o/1-a", "o/2-more")),
    ],
)
def test_evaluations_are_looked_for_where_eval_writes_them(
    work: Path, settings: str, folders: tuple[str, ...]
):
    (work / "runs/a").mkdir(parents=True)
    text = f'[config]\nruns = ["runs/a", "runs/more.pt"]\n{settings}'
    assert states(work, text, "eval") == [("not begun", "0 of 2 runs are evaluated")]
    for folder in folders:
        (work / folder).mkdir(parents=True)
        (work / folder / "metrics.json").touch()
    state = "finished" if len(folders) == 2 else "partly done"
    assert states(work, text, "eval") == [(state, f"{len(folders)} of 2 runs are evaluated")]


def test_a_run_of_other_settings_is_not_this_jobs(work: Path, cohort: Pack):
    config = TrainConfig(model="cnn", epochs=3)
    asked = resolved_config(config, cohort, make_split(cohort, "ratio:50/25/25"))
    Run(work / "runs/try").write("finished", asked, {"best": {"epoch": 2}})

    def status(settings: str) -> tuple[str, str]:
        return states(work, f'name = "try"\n[config]\n{settings}', "train")[0]

    same = 'model = "cnn"\nepochs = 3\n'
    assert status(same) == ("finished", "best epoch 2")
    assert status(f'{same}threshold_by = "youden"') == ("finished", "best epoch 2")
    assert status('model = "cnn"\nepochs = 4') == ("other settings", "epochs 3 -> 4")
    changed = ("other settings", 'split "ratio:50/25/25" -> "canonical"')
    assert status(f'{same}split = "canonical"') == changed
    Run(work / "runs/try").write("running", [], {})
    assert status(same)[0] == "other settings"
    write(work / "runs/try", "{", "run.json")
    state, why = status(same)
    assert (state, "not a readable run" in why) == ("unknown", True)


def test_the_queue_is_that_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = open_job(write(tmp_path, 'command = "train"\n', "mine.toml"), [])
    lines = [
        f"any|wsi-idc job {job.path}|1 RUNNING, 1:00 of 2:00, n1",
        "wsi-idc-mine||2 PENDING, 0:00 of 2:00, (Priority)",
        "mine|wsi-idc job another.toml|3 RUNNING, 0:10 of 2:00, n2",
        "other||4 RUNNING, 0:10 of 2:00, n2",
    ]
    write(tmp_path, "\n".join(lines), "queue")
    fake(tmp_path, f"cat {tmp_path}/queue", monkeypatch, "squeue")
    assert queue_of(job) == ["1 RUNNING, 1:00 of 2:00, n1", "2 PENDING, 0:00 of 2:00, (Priority)"]
