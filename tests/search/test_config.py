from pathlib import Path

import pytest

from tests.jobs.test_job import write
from wsi_idc.core.errors import JobError
from wsi_idc.search.config import Range, SearchSpec, read_search
from wsi_idc.training.config import TrainConfig

JOBS = Path(__file__).parents[2] / "jobs"
SEARCH = 'command = "search"\n'
AXES = "[axes]\nseed = [0, 1]\n"
TPE = SEARCH + '[search]\nsampler = "tpe"\n[axes]\n'


def test_the_ranges_in_the_example_are_valid(tmp_path: Path):
    text = (JOBS / "search.toml").read_text()
    text = text.replace('sampler = "grid"', 'sampler = "tpe"').replace("# trials", "trials")
    for axis in ("learning_rate", "batch_size"):
        kept = [line for line in text.splitlines() if not line.startswith(f"{axis} = ")]
        text = "\n".join(kept).replace(f"# {axis} = {{", f"{axis} = {{")
    spec = read_search(write(tmp_path, text))
    assert spec.trials == 20
    assert spec.axes["learning_rate"] == Range(1e-4, 1e-2, log=True)
    assert spec.axes["batch_size"] == Range(32, 128, step=32)


def test_a_job_file_is_read(tmp_path: Path):
    text = """
command = "search"
name = "mine"
[config]
epochs = 3
[search]
metric = "auc"
prune = true
[axes]
learning_rate = [1, 3e-4]
model = ["cnn", "cnn-bn"]
"""
    axes = {"learning_rate": (1.0, 3e-4), "model": ("cnn", "cnn-bn")}
    spec = read_search(write(tmp_path, text))
    assert spec == SearchSpec("mine", {"epochs": 3}, axes, metric="auc", prune=True)
    assert (spec.sampler, spec.num_trials) == ("grid", 4)
    assert [tuple(point.values()) for point in spec.points()] == [
        *((1.0, "cnn"), (1.0, "cnn-bn"), (3e-4, "cnn"), (3e-4, "cnn-bn"))
    ]
    # An integer becomes a float if the setting is a float.
    assert type(spec.axes["learning_rate"][0]) is float
    point = {"learning_rate": 0.5, "model": "cnn"}
    assert spec.config(point) == TrainConfig(epochs=3, **point)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("command = ", "not a readable TOML file"),
        ("", "this job is not a search; give a file with command"),
        ('command = "train"', "this job is not a search; give a file with command"),
        (SEARCH + 'name = "../up"\n' + AXES, "name '../up' is not a plain name"),
        (SEARCH + "[axis]\nseed = [0]\n", "unknown key 'axis'; did you mean axes?"),
        (SEARCH + "axes = 3\n", r"axes must be a table: write \[axes\]"),
        (SEARCH, r"\[axes\] is empty"),
        (SEARCH + "[axes]\nseed = []\n", "axis seed: the list is empty"),
        (SEARCH + "[axes]\nseed = [1, 1]\n", "axis seed: 1 occurs twice"),
        (SEARCH + "[axes]\nseed = 1\n", "axis seed must be a list or a range such as .*, not 1"),
        (SEARCH + '[axes]\nmodel = "cnn"\n', "axis model must be a list, not 'cnn'"),
        (SEARCH + "[axes]\nmodel = {low = 1, high = 2}\n", "axis model must be a list, not"),
        (SEARCH + "[axes]\nseed = [1.5]\n", "axis seed must be an integer, not 1.5"),
        (SEARCH + "[axes]\nseed = [true]\n", "axis seed must be an integer, not True"),
        (SEARCH + "[axes]\nlearning-rate = [1]\n", "did you mean learning_rate?"),
        (SEARCH + AXES + "[config]\nseed = 1\n", r"seed is both in \[config\] and in \[axes\]"),
        (SEARCH + AXES + "[config]\nepochs = '3'\n", "epochs must be an integer, not '3'"),
        (SEARCH + AXES + "[config]\nepoch = 3\n", "did you mean epochs?"),
        (SEARCH + AXES + "[config]\nepochs = 0\n", "at seed 0: epochs is 0; it must be at least 1"),
        (SEARCH + "[axes]\nepochs = [3, 0]\n", "at epochs 0: epochs is 0"),
        (SEARCH + "[axes]\nfocal_gamma = [1, 2]\n", "at focal_gamma 1: .* has no effect with"),
        (SEARCH + "[axes]\nseed = {low = 0, high = 9}\n", "axis seed: sampler grid needs a list"),
        (SEARCH + AXES + "[search]\ntrials = 3\n", "trials is only for sampler random or tpe"),
        (SEARCH + AXES + "[search]\nsampler = 'best'\n", "sampler 'best' is not one of grid"),
        (SEARCH + AXES + "[search]\nmetric = 'loss'\n", "metric 'loss' is not one of"),
        (SEARCH + AXES + "[search]\nprune = 'yes'\n", "prune must be true or false, not 'yes'"),
        (SEARCH + AXES + "[search]\nsampler = 'tpe'\ntrials = 0", "trials is 0"),
        (SEARCH + AXES + "[search]\nseed = -1", "seed is -1; it must be from 0"),
        (SEARCH + AXES + "[search]\nsamplr = 'tpe'", "did you mean sampler?"),
        (TPE + "seed = {low = 0}\n", "axis seed has no value high"),
        (TPE + "seed = {low = 0, high = 9, logg = true}\n", "did you mean log?"),
        (TPE + "seed = {low = 9, high = 0}\n", "axis seed: low must be below high"),
        (TPE + "seed = {low = 0, high = 9, log = true}\n", "low must be above 0 if log is true"),
        (TPE + "seed = {low=1, high=9, log=true, step=2}\n", "log and step cannot be combined"),
        (TPE + "seed = {low = 0, high = 9, step = 2}\n", "high - low is not a multiple of step 2"),
        (TPE + "seed = {low = 0, high = 9, step = 0}\n", "step must be above 0"),
        (TPE + "weight_decay = {low = 0, high = 1, step = 1e-320}\n", "step is too small"),
        (TPE + f"weight_decay = {{low = 0, high = {'9' * 400}}}\n", "is too large a number"),
        (SEARCH + f"[axes]\nweight_decay = [{'9' * 400}]\n", "is too large a number"),
        (TPE + "learning_rate = {low = nan, high = 9}\n", "low must be below high"),
        (TPE + "weight_decay = {low = -1, high = 9}\n", "at weight_decay -1: weight_decay is -1"),
        (SEARCH + AXES + "tasks = 2\n", "'tasks'"),
        (
            SEARCH + f"[axes]\nseed = {list(range(101))}\nbatch_size = {list(range(1, 102))}\n",
            "the grid has 10201 points, but at most 10000",
        ),
    ],
)
def test_errors_are_one_line(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, text)
    with pytest.raises(JobError, match=message) as caught:
        read_search(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_freeze_may_be_a_word(tmp_path: Path):
    text = SEARCH + '[config]\nfreeze = "all"\n' + AXES
    assert read_search(write(tmp_path, text)).fixed == {"freeze": "all"}
    text = SEARCH + '[axes]\nfreeze = [0, "all"]\n'
    assert read_search(write(tmp_path, text)).axes == {"freeze": (0, "all")}
    with pytest.raises(JobError, match="axis freeze must be an integer, not 'most'"):
        read_search(write(tmp_path, text.replace("all", "most")))


def test_steps_are_decimal_and_the_focal_exponent_may_vary_with_the_focal_loss(tmp_path: Path):
    axes = "weight_decay = {low = 0, high = 0.3, step = 0.1}\nfocal_gamma = [1, 2]\n"
    spec = read_search(write(tmp_path, TPE + axes + '[config]\nimbalance = "focal"\n'))
    assert spec.axes == {"weight_decay": Range(0.0, 0.3, step=0.1), "focal_gamma": (1, 2)}


def test_a_space_of_a_million_points_is_checked_fast():
    axes = {name: tuple(range(1, 101)) for name in ("seed", "patience", "batch_size")}
    axes["split"] = ("auto", "canonical")
    spec = SearchSpec("s", {}, axes, sampler="random", trials=1)
    assert spec.num_points == 2_000_000
    assert [point["split"] for point in spec.points("split")] == ["auto", "canonical"]
    assert {point["seed"] for point in spec.points("split")} == {1}
