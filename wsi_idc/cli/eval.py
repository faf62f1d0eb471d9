"""``wsi-idc eval``."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsi_idc.cli.inputs import open_predictor
from wsi_idc.cli.options import (
    PATH,
    compute_options,
    data_option,
    json_option,
    logging_options,
    predictor_options,
    resample_options,
    split_option,
)
from wsi_idc.cli.output import echo, echo_json, echo_table, one_line
from wsi_idc.core.errors import RunError, WsiIdcError

if TYPE_CHECKING:
    import pandas as pd

    from wsi_idc.data.pack import Pack
    from wsi_idc.evaluation.results import Evaluation
    from wsi_idc.inference.predictor import Predictor

Found = TypeVar("Found")


@click.command("eval")
@click.argument("runs", nargs=-1, type=PATH)
@predictor_options
@data_option
@split_option
@click.option(
    "--out",
    type=PATH,
    help="[default: eval-SPLIT in the run, eval/ for the bundled model, ensembles and tables]",
)
@click.option("--allow-seen", is_flag=True, help="Also on patients that it was trained on.")
@click.option(
    "--rank-by", default="auc", show_default=True, help="Metric that sorts the table of RUNS."
)
@click.option("--no-report", is_flag=True, help="Write tables only: no figures, no HTML page.")
@resample_options
@compute_options
@json_option
@logging_options
def eval_(
    runs: tuple[Path, ...],
    checkpoints: tuple[Path, ...],
    tta: bool,
    smooth: bool,
    data: Path | None,
    split: str,
    out: Path | None,
    allow_seen: bool,
    rank_by: str,
    no_report: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure checkpoints on unseen patients.

    Intervals are 95 %, by bootstrap over patients. Writes metrics.json, patients.csv,
    predictions.csv, figures/ and report.html.

    Of several RUNS (run directories or .pt files) each is evaluated by itself, and
    leaderboard.html sets them beside published results. Several --checkpoint are one ensemble.

    \b
    Examples:
      wsi-idc eval
      wsi-idc eval --checkpoint runs/mine --tta --smooth
      wsi-idc eval runs/a runs/b runs/c --rank-by average_precision
    """
    from wsi_idc.evaluation.leaderboard import RANKABLE
    from wsi_idc.runtime.device import select_device

    if runs and checkpoints:
        raise click.UsageError("give RUNS, each by itself, or --checkpoint, not both.")
    if rank_by not in RANKABLE:
        raise click.UsageError(f"--rank-by is one of {', '.join(RANKABLE)}.")
    how["device_config"] = select_device(how.pop("device"), how.pop("precision"))
    how |= {"split": split, "allow_seen": allow_seen, "with_report": not no_report}
    open_these = partial(open_predictor, tta=tta, smooth=smooth)
    runs = tuple(dict.fromkeys(runs))
    if len(runs) > 1:
        _evaluate_several(runs, open_these, data, out, rank_by=rank_by, as_json=as_json, **how)
    else:
        _evaluate_one(open_these(runs or checkpoints), data, out, as_json=as_json, **how)


def _evaluate_one(
    method: "Predictor", data: Path | None, out: Path | None, *, as_json: bool, **how: Any
) -> None:
    from wsi_idc.data.open_data import open_data
    from wsi_idc.evaluation.report import evaluate_into

    pack = open_data(data)
    folder = _checked_folder(method, pack, out, **how)
    _say_evaluation(*evaluate_into(folder, method, pack, **how), as_json=as_json)


def _evaluate_several(
    runs: Sequence[Path],
    open_these: "Callable[[Sequence[Path]], Predictor]",
    data: Path | None,
    out: Path | None,
    *,
    rank_by: str,
    as_json: bool,
    **how: Any,
) -> None:
    """Evaluate and rank runs; those that cannot be evaluated are listed at the end.

    Raises:
        RunError: There are such.
    """
    from wsi_idc.data.open_data import open_data
    from wsi_idc.evaluation.leaderboard import check_leaderboard_folder
    from wsi_idc.evaluation.report import evaluate_into
    from wsi_idc.evaluation.results import numbered_folders

    board = out or Path("eval", f"leaderboard-{how['split']}")
    check_leaderboard_folder(board)
    failed: dict[Path, WsiIdcError] = {}
    methods = _each(runs, lambda run: open_these([run]), failed)
    pack = open_data(data)
    own = dict(zip(runs, numbered_folders(runs, out), strict=True)) if out else {}
    # Ahead of the first evaluation, which takes long.
    folders = _each(
        methods, lambda run: _checked_folder(methods[run], pack, own.get(run), **how), failed
    )
    found = _each(
        folders, lambda run: evaluate_into(folders[run], methods[run], pack, **how)[0], failed
    )
    if found:
        _rank(found, failed, board, rank_by=rank_by, as_json=as_json)
    for run, error in failed.items():
        click.echo(one_line(f"no evaluation of {run}: {error}"), err=True)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(runs)} runs are not evaluated; the reasons are above"
        )


def _each(
    runs: Iterable[Path], act: Callable[[Path], Found], failed: dict[Path, WsiIdcError]
) -> dict[Path, Found]:
    """Return what ``act`` gives of each run; an error is set aside in ``failed``."""
    found = {}
    for run in runs:
        try:
            found[run] = act(run)
        except WsiIdcError as error:
            failed[run] = error
    return found


def _checked_folder(
    method: "Predictor",
    pack: "Pack",
    out: Path | None,
    *,
    split: str,
    allow_seen: bool,
    **_: Any,
) -> Path:
    """Return where an evaluation goes, once it is sure that it can be made and written there."""
    from wsi_idc.evaluation.evaluate import choose_patients, evaluation_folder
    from wsi_idc.evaluation.results import check_evaluation_folder

    choose_patients(method, pack, split, allow_seen=allow_seen)
    folder = out or evaluation_folder(method, split)
    check_evaluation_folder(folder)
    return folder


def _rank(
    found: "Mapping[Path, Evaluation]",
    failed: Mapping[Path, WsiIdcError],
    board: Path,
    *,
    rank_by: str,
    as_json: bool,
) -> None:
    """Write the table of several evaluations and its page, and say it."""
    from wsi_idc.evaluation.leaderboard import leaderboard, same_patients, write_leaderboard
    from wsi_idc.evaluation.leaderboard_page import write_leaderboard_page
    from wsi_idc.metrics.classification import records

    named = [(str(run), one) for run, one in found.items()]
    table, is_fair = leaderboard(named, rank_by=rank_by), same_patients(named)
    write_leaderboard(table, board)
    write_leaderboard_page(table, board, is_fair=is_fair)
    if as_json:
        reasons = {str(run): str(error) for run, error in failed.items()}
        said = {"leaderboard": records(table), "same_patients": is_fair, "out": board}
        echo_json({**said, "failed": reasons})
    else:
        _say_leaderboard(table, board, rank_by=rank_by, is_fair=is_fair)


def _say_evaluation(evaluation: "Evaluation", folder: Path, *, as_json: bool) -> None:
    if as_json:
        echo_json({**evaluation.as_dict(), "out": folder})
        return
    final, counts = evaluation.final, evaluation.final.confusion
    echo(
        f"{evaluation.split}: {evaluation.num_patches} patches of {evaluation.num_patients} "
        f"patients, {final.column.replace('_', ' ')}, threshold {final.threshold:.3f}"
    )
    echo_table((name, _with_interval(final, name)) for name in final.metrics)
    for name, of in evaluation.patient_summary.items():
        echo(
            f"{name.replace('_', ' ')} of a patient: mean {of['mean']:.3f}"
            f"{_interval(of['low'], of['high'])}, median {of['median']:.3f}, "
            f"from {of['least']:.3f} to {of['largest']:.3f}"
        )
    if evaluation.raw is not None:
        raw = evaluation.raw.metrics
        echo(f"without smoothing: AUC {raw['auc']:.4f}, F1 {raw['f1']:.4f}, ECE {raw['ece']:.4f}")
    echo("confusion     called non-IDC  called IDC")
    echo(f"  non-IDC     {counts.true_negative:14d}  {counts.false_positive:10d}")
    echo(f"  IDC         {counts.false_negative:14d}  {counts.true_positive:10d}")
    for note in evaluation.notes:
        echo(f"note: {note}")
    echo(f"written to {folder}")


def _with_interval(final: Any, name: str) -> str:
    low, high = final.intervals[name]
    return f"{final.metrics[name]:.4f}" + ("" if low != low else f"  [{low:.4f}, {high:.4f}]")


def _interval(low: float, high: float) -> str:
    return "" if low != low else f" [{low:.3f}, {high:.3f}]"


def _say_leaderboard(table: "pd.DataFrame", folder: Path, *, rank_by: str, is_fair: bool) -> None:
    from wsi_idc.evaluation.leaderboard import MEASURED

    columns = list(dict.fromkeys([rank_by, "auc", "f1", "balanced_accuracy"]))
    width = max(len(str(name)) for name in table["name"])
    echo(f"rank  {'':{width}}  " + "  ".join(f"{name:>17}" for name in columns) + "  test")
    for row in table.to_dict("records"):
        ours = row["source"] == MEASURED
        if not ours and row["name"] == table[table["source"] != MEASURED]["name"].iloc[0]:
            echo("published, on other patients, for context only:")
        values = "  ".join(f"{_number(row[name]):>17}" for name in columns)
        where = f"{row['test']}, {row['patients']:.0f} patients" if ours else row["test"]
        echo(
            f"{row['rank']:4.0f}  {row['name']:{width}}  {values}  {where}"
            if ours
            else f"      {row['name']:{width}}  {values}  {where}"
        )
    if not is_fair:
        echo("note: these runs were not tested on the same patches, so the ranks mean little")
    echo(f"written to {folder}")


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3f}"
