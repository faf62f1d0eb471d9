from pathlib import Path

from wsi_idc.cli.job import open_job
from wsi_idc.search.config import Range, SearchSpec
from wsi_idc.search.results import SearchResult, Trial, best_job, draw_search, rank_trials
from wsi_idc.training.config import TrainConfig


def test_trials_are_ranked_by_state_and_value():
    trials = [
        Trial(0, "failed", {}, 0.99),
        Trial(1, "waiting", {}),
        Trial(2, "complete", {}, 0.5),
        Trial(3, "pruned", {}, 0.9),
        Trial(4, "complete", {}, 0.7),
        Trial(5, "running", {}, 0.95),
        Trial(6, "complete", {}, 0.7),
    ]
    assert [trial.number for trial in rank_trials(trials)] == [4, 6, 2, 3, 5, 1, 0]


def test_the_figure_has_one_panel_per_axis(tmp_path: Path):
    axes = {"learning_rate": Range(1e-4, 1e-2, log=True), "batch_size": (64, 32), "seed": (0,)}
    spec = SearchSpec("s", {}, axes, sampler="random")
    trials = [
        Trial(0, "complete", {"learning_rate": 1e-3, "batch_size": 32, "seed": 0}, 0.8),
        Trial(1, "complete", {"learning_rate": 2e-3, "batch_size": 64, "seed": 0}, 0.9),
        Trial(2, "pruned", {"learning_rate": 4e-3, "batch_size": 64, "seed": 0}, 0.5),
        Trial(3, "running", {"learning_rate": 5e-3, "batch_size": 64, "seed": 0}),
    ]
    panels = draw_search(SearchResult(spec, tmp_path, rank_trials(trials))).axes
    assert [panel.get_title() for panel in panels] == ["learning rate", "batch size", "seed"]
    rate, batch, _ = panels
    assert rate.get_xscale() == "log"
    assert [text.get_text() for text in batch.get_xticklabels()] == ["32", "64"]
    points = {drawn.get_label(): drawn.get_offsets().tolist() for drawn in rate.collections}
    assert points == {
        "trial": [[2e-3, 0.9], [1e-3, 0.8]],
        "pruned trial": [[4e-3, 0.5]],
        "best": [[2e-3, 0.9]],
    }
    # A pruned trial is not part of the mean.
    means = [drawn for drawn in batch.collections if drawn.get_label() == "mean"]
    starts = sorted(line.get_segments()[0][0].tolist() for line in means)
    assert starts == [[-0.25, 0.8], [0.75, 0.9]]


def test_the_best_job_keeps_any_setting(tmp_path: Path):
    config = TrainConfig(split='a "b"\\ü.csv', learning_rate=1e-5, weight_decay=0.0)
    best = Trial(7, "complete", {}, 0.5, config=vars(config))
    spec = SearchSpec("grid", {}, {"seed": (0, 1)})
    path = tmp_path / "best.toml"
    path.write_text(best_job(SearchResult(spec, tmp_path, [best])), encoding="utf-8")
    settings = dict(open_job(path, []).task(1).settings)
    assert settings.pop("out") == "runs/grid-best"
    assert TrainConfig(**settings) == config
