"""``wsi-idc compare``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.inputs import open_predictor
from wsi_idc.cli.options import (
    PATH,
    compute_options,
    data_option,
    is_given,
    json_option,
    logging_options,
    resample_options,
    split_option,
)
from wsi_idc.cli.output import echo, echo_json

if TYPE_CHECKING:
    from wsi_idc.evaluation.compare import Comparison, Predictions


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@data_option
@split_option
@click.option(
    "--out", type=PATH, help="Write comparison.html, .json, metrics.csv, patients.csv there."
)
@resample_options
@compute_options
@json_option
@logging_options
@click.pass_context
def compare(
    ctx: click.Context,
    a: Path,
    b: Path,
    data: Path | None,
    split: str,
    out: Path | None,
    as_json: bool,
    seed: int,
    num_resamples: int,
    **how: Any,
) -> None:
    """Compare two runs on the same patients.

    A and B are runs (or .pt files), or folders that wsi-idc eval has written. A run is evaluated
    first unless that is done. Intervals are of the difference B - A, by bootstrap over the
    patients of both.

    \b
    Examples:
      wsi-idc compare runs/a runs/b
      wsi-idc compare runs/a/eval-test runs/a/eval-test-tta
    """
    from wsi_idc.evaluation.compare import check_comparison_folder, write_comparison
    from wsi_idc.evaluation.compare import compare as compare_them
    from wsi_idc.evaluation.comparison_page import write_comparison_page
    from wsi_idc.evaluation.results import is_evaluation

    ways = [f"--{name}" for name in ("data", "split") if is_given(ctx, name)]
    if ways and is_evaluation(a) and is_evaluation(b):
        raise click.UsageError(
            f"{' and '.join(ways)} would do nothing: both folders are evaluations already; leave "
            "it out, or give the runs."
        )
    if out is not None:
        check_comparison_folder(out)
    them = [
        _read(one, data, split=split, seed=seed, num_resamples=num_resamples, **how)
        for one in (a, b)
    ]
    found = compare_them(*them, seed=seed, num_resamples=num_resamples)
    if out is not None:
        write_comparison(found, out)
        write_comparison_page(found, out, name_a=str(a), name_b=str(b))
    if as_json:
        echo_json({**found.as_dict(), "a": them[0].folder, "b": them[1].folder, "out": out})
        return
    _say(found, *them)
    if out is not None:
        echo(f"written to {out}")


def _read(given: Path, data: Path | None, *, split: str, **how: Any) -> "Predictions":
    """Read the evaluation that an argument means; a run's is made where it is not there."""
    from wsi_idc.data.open_data import open_data
    from wsi_idc.evaluation.compare import read_predictions
    from wsi_idc.evaluation.evaluate import evaluation_folder
    from wsi_idc.evaluation.report import evaluate_into
    from wsi_idc.evaluation.results import check_evaluation_folder, is_evaluated, is_evaluation
    from wsi_idc.runtime.device import select_device

    if is_evaluation(given):
        return read_predictions(given)
    method = open_predictor([given], tta=False, smooth=False)
    folder, pack = evaluation_folder(method, split), open_data(data)
    if not is_evaluated(folder, method, pack):
        check_evaluation_folder(folder)
        compute = select_device(how.pop("device"), how.pop("precision"))
        evaluate_into(folder, method, pack, split=split, device_config=compute, **how)
    return read_predictions(folder)


def _say(found: "Comparison", a: "Predictions", b: "Predictions") -> None:
    from wsi_idc.evaluation.compare import MIN_PATIENTS

    echo(f"A: {a.folder}")
    echo(f"B: {b.folder}")
    echo(f"{found.num_patches} patches of {found.num_patients} patients")
    echo(f"{'':18}{'A':>8}{'B':>9}{'B - A':>10}  95 % interval")
    for row in found.metrics.to_dict("records"):
        better = {"a": "  A is better", "b": "  B is better"}.get(row["better"], "")
        echo(
            f"{row['metric']:18}{row['a']:8.4f} {row['b']:8.4f} {row['difference']:+9.4f}  "
            f"[{row['low']:+.4f}, {row['high']:+.4f}]{better}"
        )
    for note in found.notes:
        echo(f"note: {note}")
    if found.num_patients < MIN_PATIENTS:
        echo(f"fewer than {MIN_PATIENTS} patients: the intervals are too narrow to call one better")
    elif not found.metrics["better"].any():
        echo("no difference is larger than chance between patients would make it")
