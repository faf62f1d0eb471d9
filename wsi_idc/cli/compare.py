"""``wsi-idc compare``: compare two runs on the same patients."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.config_file import config_option
from wsi_idc.cli.eval import run_evaluation
from wsi_idc.cli.inputs import find_checkpoints
from wsi_idc.cli.options import (
    PATH,
    compute_options,
    data_option,
    is_given,
    output_options,
    resample_options,
    split_option,
)
from wsi_idc.cli.output import echo_result, hanging_lines
from wsi_idc.core.files import ensure_writable
from wsi_idc.core.metric_table import THRESHOLD_METRICS
from wsi_idc.core.text import count_patches

if TYPE_CHECKING:
    from wsi_idc.evaluation.compare import Comparison


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@data_option
@split_option
@click.option(
    "--out", type=PATH, help="Folder for the page, the tables and comparison.json; optional."
)
@resample_options
@compute_options
@config_option
@output_options
def compare(
    a: Path, b: Path, data: Path | None, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Compare two runs on the same patients.

    A and B are runs, .pt files, or folders of evaluations by wsi-idc eval. If a run has no
    evaluation yet, the command evaluates the run first. The 95 % interval of each difference B - A
    is computed by bootstrap over the patients.

    \b
    Examples:
      wsi-idc compare runs/a runs/b
      wsi-idc compare runs/a/eval-test runs/a/eval-test-tta
    """
    from wsi_idc.evaluation.results import is_evaluation

    runs = [path for path in (a, b) if not is_evaluation(path)]
    context = click.get_current_context()
    unused = [f"--{name}" for name in ("data", "split") if is_given(context, name)]
    if unused and not runs:
        raise click.UsageError(
            f"{' and '.join(unused)} would have no effect, because A and B are evaluations; "
            "leave out the option, or give the runs."
        )
    checkpoints = {run: find_checkpoints([run]) for run in runs}

    from wsi_idc.evaluation.compare import COMPARISON_FILES, read_predictions, write_comparison
    from wsi_idc.evaluation.compare import compare as compare_predictions
    from wsi_idc.evaluation.pages import write_comparison_page

    if out is not None:
        ensure_writable(out, **COMPARISON_FILES)
    folders = [
        run_evaluation(checkpoints[path], data, **options) if path in runs else path
        for path in (a, b)
    ]
    resampling = {name: options[name] for name in ("seed", "num_resamples")}
    comparison = compare_predictions(*map(read_predictions, folders), **resampling)
    if out is not None:
        write_comparison(comparison, out)
        write_comparison_page(comparison, out, name_a=str(a), name_b=str(b))
    record = {**comparison.as_dict(), "a": folders[0], "b": folders[1], "out": out}
    echo_result(record, _comparison_lines(comparison, folders, out), as_json=as_json)


def _comparison_lines(
    comparison: "Comparison", folders: list[Path], out: Path | None
) -> Iterator[str]:
    from wsi_idc.metrics.bootstrap import FEW_PATIENTS, MIN_PATIENTS

    for name, folder, threshold in zip(
        "AB", folders, (comparison.threshold_a, comparison.threshold_b), strict=True
    ):
        yield f"{name}: {folder}, threshold {threshold:.3f}"
    yield count_patches(comparison.num_patches, comparison.num_patients)
    yield f"{'':18}{'A':>8}{'B':>9}{'B - A':>10}  95 % interval"
    for row in comparison.metrics.to_dict("records"):
        better = {"a": "  A is better", "b": "  B is better"}.get(row["better"], "")
        yield (
            f"{row['metric']:18}{row['a']:8.4f} {row['b']:8.4f} {row['difference']:+9.4f}  "
            f"[{row['low']:+.4f}, {row['high']:+.4f}]{better}"
        )
    first, last = THRESHOLD_METRICS[0], THRESHOLD_METRICS[-1]
    yield f"{first} to {last}: at the threshold of A and at that of B"
    for note in comparison.notes:
        if note != FEW_PATIENTS:  # printed below
            yield from hanging_lines("note: ", note)
    if comparison.num_patients < MIN_PATIENTS:
        yield f"{FEW_PATIENTS} for a decision"
    elif not comparison.metrics["better"].any():
        yield "every interval contains 0, so every difference may be random"
    if out is not None:
        yield f"written to {out}"
