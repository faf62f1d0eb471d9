"""``wsi-idc eval``: evaluate checkpoints, and rank several runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsi_idc.cli.config_file import config_option
from wsi_idc.cli.inputs import find_checkpoints, open_predictor
from wsi_idc.cli.options import (
    PATH,
    compute_options,
    data_option,
    output_options,
    predictor_options,
    resample_options,
    split_option,
    with_default,
)
from wsi_idc.cli.output import echo_note, echo_result, hanging_lines, raise_if_any, table_lines
from wsi_idc.core.constants import DEFAULT_EVALUATIONS
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.core.files import ensure_writable
from wsi_idc.core.metric_table import THRESHOLD_METRICS
from wsi_idc.core.text import count, count_patches

if TYPE_CHECKING:
    import pandas as pd

    from wsi_idc.data.pack import Pack
    from wsi_idc.evaluation.results import Evaluation
    from wsi_idc.inference.predictor import Predictor


Result = TypeVar("Result")


@click.command("eval")
@click.argument("runs", nargs=-1, type=PATH)
@predictor_options
@click.option(
    "--smooth",
    is_flag=True,
    help="Also evaluate probabilities that are smoothed over neighboring patches.",
)
@data_option
@split_option
@click.option(
    "--out",
    type=PATH,
    help="Folder of the results.  [default: eval-SPLIT in the run; for an ensemble or the bundled "
    "model, a folder in eval/]",
)
@click.option("--allow-seen", is_flag=True, help="Allow patients that the model was trained on.")
@with_default("--rank-by", default="auc", help="Metric by which RUNS are ranked.")
@click.option("--no-report", is_flag=True, help="Write tables only: no figures, no HTML page.")
@click.option(
    "--robustness",
    is_flag=True,
    help="Also evaluate patches with another stain, light, focus, compression and resolution; "
    "takes 17 times as long.",
)
@click.option(
    "--cam",
    is_flag=True,
    help="Also measure CAMs: how far the log odds of IDC fall if the marked part is hidden.",
)
@resample_options
@compute_options
@config_option
@output_options
def eval_(
    runs: tuple[Path, ...],
    checkpoints: tuple[Path, ...],
    tta: bool,
    smooth: bool,
    data: Path | None,
    out: Path | None,
    rank_by: str,
    no_report: bool,
    robustness: bool,
    cam: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate checkpoints on unseen patients.

    The command writes metrics.json, patients.csv, predictions.csv, figures/ and report.html. For a
    pack of slides, it also writes slides.csv. Each metric has a 95 % interval by bootstrap over
    patients.

    RUNS are run directories or .pt files. Several RUNS are evaluated one by one. The page
    leaderboard.html ranks the RUNS that have the same test patients, and then lists published
    results. Several --checkpoint options make one ensemble: the mean of the probabilities of all
    these checkpoints is evaluated.

    \b
    Examples:
      wsi-idc eval
      wsi-idc eval --checkpoint runs/mine --tta --smooth
      wsi-idc eval runs/a runs/b runs/c --rank-by average_precision
    """
    if runs and checkpoints:
        raise click.UsageError("give either RUNS or --checkpoint, not both.")
    runs = tuple(dict.fromkeys(runs))
    # Check the names before the slow steps: packing a patch tree and importing torch.
    failed: dict[Path, WsiIdcError] = {}
    if len(runs) > 1:
        paths_of = _for_each(runs, lambda run: find_checkpoints([run]), failed)
        if not paths_of:
            _raise_if_any(failed, runs)
        for error in failed.values():
            echo_note(str(error))
    else:
        paths = find_checkpoints(runs or checkpoints)
    from wsi_idc.evaluation.compare import RANKABLE

    if rank_by not in RANKABLE:
        raise click.UsageError(f"--rank-by must be one of {', '.join(RANKABLE)}.")
    from wsi_idc.data.open_data import open_data

    pack = open_data(data)  # raises an error for missing data, before torch is imported
    options |= {"with_report": not no_report, "with_robustness": robustness, "with_cam": cam}
    load = partial(open_predictor, tta=tta, smooth=smooth)
    if len(runs) > 1:
        several = (runs, paths_of, failed, load, pack, out)
        _evaluate_several(*several, rank_by=rank_by, as_json=as_json, **options)
        return
    from wsi_idc.evaluation.report import evaluate_into

    _select_device(options)
    predictor = load(paths)
    folder = _checked_folder(predictor, pack, out, **options)
    evaluation, folder = evaluate_into(folder, predictor, pack, **options)
    record = {**evaluation.as_dict(), "out": folder}
    echo_result(record, _evaluation_lines(evaluation, folder), as_json=as_json)


def _select_device(options: dict[str, Any]) -> None:
    """In the dict ``options``, replace "device" and "precision" by one item "device_config"."""
    from wsi_idc.runtime.device import select_device

    options["device_config"] = select_device(options.pop("device"), options.pop("precision"))


def _evaluate_several(
    runs: Sequence[Path],
    paths_of: Mapping[Path, Sequence[Path]],
    failed: dict[Path, WsiIdcError],
    load: "Callable[[Sequence[Path]], Predictor]",
    pack: "Pack",
    out: Path | None,
    *,
    rank_by: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate and rank runs; print a note at the end for each run that cannot be evaluated.

    ``paths_of`` has the checkpoint paths of each run. ``failed`` has the error of each run whose
    checkpoints are not found; if another run fails, its error is added to ``failed``.
    """
    from wsi_idc.evaluation import compare
    from wsi_idc.evaluation.pages import write_leaderboard_page
    from wsi_idc.evaluation.report import evaluate_into
    from wsi_idc.evaluation.results import numbered_folders
    from wsi_idc.metrics.classification import records

    board = out or DEFAULT_EVALUATIONS / f"leaderboard-{options['split']}"
    ensure_writable(board, **compare.LEADERBOARD_FILES)
    _select_device(options)
    predictors = _for_each(paths_of, lambda run: load(paths_of[run]), failed)
    outs = dict(zip(runs, numbered_folders(runs, out), strict=True)) if out else {}
    # An evaluation takes long: check every folder before the first evaluation.
    folders = _for_each(
        predictors,
        lambda run: _checked_folder(predictors[run], pack, outs.get(run), **options),
        failed,
    )
    evaluations = _for_each(
        folders,
        lambda run: evaluate_into(folders[run], predictors[run], pack, **options)[0],
        failed,
    )
    if evaluations:
        named = [(str(run), evaluation) for run, evaluation in evaluations.items()]
        table = compare.leaderboard(named, rank_by=rank_by)
        is_fair = bool((table["source"] != compare.UNRANKED).all())
        compare.write_leaderboard(table, board)
        write_leaderboard_page(table, board)
        reasons = {str(run): str(error) for run, error in failed.items()}
        record = {"leaderboard": records(table), "same_patients": is_fair, "out": board}
        lines = _leaderboard_lines(table, board, rank_by=rank_by)
        echo_result({**record, "failed": reasons}, lines, as_json=as_json)
    _raise_if_any(failed, runs)


def _raise_if_any(failed: Mapping[Path, WsiIdcError], runs: Sequence[Path]) -> None:
    for run, error in failed.items():
        echo_note(f"{run} is not evaluated: {error}")
    raise_if_any(failed, len(runs), "runs are not evaluated")


def _for_each(
    runs: Iterable[Path], function: Callable[[Path], Result], failed: dict[Path, WsiIdcError]
) -> dict[Path, Result]:
    """Call ``function`` for each run; return the results. Put a run's error into ``failed``."""
    results = {}
    for run in runs:
        try:
            results[run] = function(run)
        except WsiIdcError as error:
            failed[run] = error
    return results


def _checked_folder(
    predictor: "Predictor", pack: "Pack", out: Path | None, split: str, allow_seen: bool, **_: Any
) -> Path:
    """Check the patients and the output folder of an evaluation; return the output folder."""
    from wsi_idc.evaluation.evaluate import choose_patients, evaluation_folder
    from wsi_idc.evaluation.results import EVALUATION_FILES

    choose_patients(predictor, pack, split, allow_seen=allow_seen)
    folder = out or evaluation_folder(predictor, split)
    ensure_writable(folder, **EVALUATION_FILES)
    return folder


def _evaluation_lines(evaluation: "Evaluation", folder: Path) -> Iterator[str]:
    final, counts = evaluation.final, evaluation.final.confusion
    yield (
        f"{evaluation.split}: {count_patches(evaluation.num_patches, evaluation.num_patients)}, "
        f"{final.column.replace('_', ' ')}, threshold {final.threshold:.3f}"
    )
    intervals, at = final.intervals, f"at the threshold {final.threshold:.3f}"
    yield from table_lines(
        (
            name,
            f"{value:.4f}{_interval(*intervals[name], digits=4, space='  ')}"
            f"{f'  {at}' if name in THRESHOLD_METRICS else ''}",
        )
        for name, value in final.metrics.items()
    )
    if evaluation.patient_summary:
        yield f"{'of a patient':17}   mean  {'95 % interval':<16}  median  smallest  largest"
    for name, row in evaluation.patient_summary.items():
        interval = _interval(row["low"], row["high"], space="")
        yield (
            f"  {name:15} {row['mean']:6.3f}  {interval:<16}  {row['median']:6.3f}  "
            f"{row['least']:8.3f}  {row['largest']:7.3f}"
            f"{f'  at {final.threshold:.3f}' if name == 'dice' else ''}"
        )
    if evaluation.raw is not None:
        raw, threshold = evaluation.raw.metrics, evaluation.raw.threshold
        yield (
            f"without smoothing: AUC {raw['auc']:.4f}, ECE {raw['ece']:.4f}, F1 {raw['f1']:.4f} at "
            f"the threshold {threshold:.3f}"
        )
    yield "confusion     called non-IDC  called IDC"
    yield f"  non-IDC     {counts.true_negative:14d}  {counts.false_positive:10d}"
    yield f"  IDC         {counts.false_negative:14d}  {counts.true_positive:10d}"
    yield from _robustness_lines(evaluation)
    yield from _cam_lines(evaluation)
    for note in evaluation.notes:
        yield from hanging_lines("note: ", note)
    yield f"written to {folder}"


def _robustness_lines(evaluation: "Evaluation") -> Iterator[str]:
    if evaluation.robustness is None:
        return
    threshold = (evaluation.raw or evaluation.final).threshold
    yield f"changed patches, called at the threshold {threshold:.3f}"
    yield "  change                AUC  sensitivity  called IDC  novelty  cautions"
    for row in evaluation.robustness.to_dict("records"):
        novelty = (
            ("", "")
            if row["cautions"] != row["cautions"]
            else (f"{row['mean_novelty']:.2f}", f"{row['cautions']:.0%}")
        )
        yield (
            f"  {row['change']:<19} {row['auc']:5.3f}        {row['sensitivity']:5.3f}       "
            f"{row['called_idc']:5.1%}  {novelty[0]:>7}  {novelty[1]:>8}"
        )


def _cam_lines(evaluation: "Evaluation") -> Iterator[str]:
    cam = evaluation.cam
    if cam is None:
        return
    yield f"CAM ({cam.method}, {cam.grid[0]}x{cam.grid[1]} cells, {cam.num_idc} IDC patches)"
    lines = [
        ("fall of the log odds", f"{cam.fall:.2f}   largest fifth hidden, minus random fifth"),
        ("area", f"{cam.area:.2f}   mean of this fall over hidden parts of 5 to 50 %"),
        ("brightness of non-IDC", f"{cam.other_brightness:.2f}   of the brightness of IDC"),
        ("excess at the rim", f"{cam.rim_excess:+.0%}   outer cells against inner cells"),
        ("stability under flips", f"{cam.flip_stability:.2f}   correlation"),
    ]
    # The last three values are NaN if patches or cells are missing, or if all CAMs are 0.
    yield from table_lines((name, text) for name, text in lines if "nan" not in text)


def _interval(low: float, high: float, *, digits: int = 3, space: str = " ") -> str:
    is_nan = low != low
    return "" if is_nan else f"{space}[{low:.{digits}f}, {high:.{digits}f}]"


def _leaderboard_lines(table: "pd.DataFrame", folder: Path, *, rank_by: str) -> Iterator[str]:
    from wsi_idc.evaluation.compare import MEASURED, PUBLISHED, UNRANKED

    columns = list(dict.fromkeys([rank_by, "auc", "f1", "balanced_accuracy", "threshold"]))
    yield "rank  " + "  ".join(f"{name:>5}" for name in columns) + "  name (test patients)"
    headings = {
        UNRANKED: "evaluated on other patches, so not ranked:",
        PUBLISHED: "published results, measured on other patients:",
    }
    for row in table.to_dict("records"):
        if heading := headings.pop(row["source"], ""):
            yield heading
        numbers = {name: "" if row[name] != row[name] else f"{row[name]:.3f}" for name in columns}
        values = "  ".join(f"{text:>{max(5, len(name))}}" for name, text in numbers.items())
        rank = f"{row['rank']:4.0f}" if row["source"] == MEASURED else "    "
        is_own = row["source"] != PUBLISHED
        test = f"{row['test']}, {count(int(row['patients']), 'patient')}" if is_own else row["test"]
        yield from hanging_lines(f"{rank}  {values}  ", f"{row['name']} ({test})")
    yield f"written to {folder}"


def run_evaluation(checkpoints: list[Path], data: Path | None, **options: Any) -> Path:
    """Evaluate checkpoints, unless their evaluation exists; return the folder of the evaluation.

    ``options`` are the options of ``wsi-idc eval``, such as "split" and "device".
    """
    from wsi_idc.data.open_data import open_data

    pack = open_data(data)  # raises an error for missing data, before torch is imported

    from wsi_idc.evaluation.evaluate import evaluation_folder
    from wsi_idc.evaluation.report import evaluate_into
    from wsi_idc.evaluation.results import EVALUATION_FILES, is_evaluated

    predictor = open_predictor(checkpoints, tta=False, smooth=False)
    folder = evaluation_folder(predictor, options["split"])
    if not is_evaluated(folder, predictor, pack):
        ensure_writable(folder, **EVALUATION_FILES)
        _select_device(options)
        evaluate_into(folder, predictor, pack, **options)
    return folder
