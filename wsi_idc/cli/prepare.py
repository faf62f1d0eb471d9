"""``wsi-idc prepare``."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsi_idc.cli.options import PATH, Number, json_option, logging_options
from wsi_idc.cli.output import echo, echo_json, echo_table
from wsi_idc.core.errors import DataError

if TYPE_CHECKING:
    from wsi_idc.data.patch_index import FileIssue
    from wsi_idc.data.prepare import PrepareReport

_NAMES_SHOWN = 10


@click.command()
@click.argument("tree", type=PATH, required=False)
@click.option("--out", type=PATH, default=Path("data/idc.h5"), show_default=True, help="The pack.")
@click.option(
    "--mpp",
    type=Number(min=0, min_open=True),
    help="Microns per pixel of the patches.  [default: 4, noted as assumed]",
)
@click.option("--patch-px", type=click.IntRange(8, 255), default=50, show_default=True)
@click.option("--num-workers", type=click.IntRange(min=1), help="[default: the cores given]")
@click.option("--strict", is_flag=True, help="Exit with 1 if any file had to be left out.")
@json_option
@logging_options
def prepare(
    tree: Path | None,
    out: Path,
    mpp: float | None,
    patch_px: int,
    num_workers: int | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Check patches and pack them into one file.

    TREE is a folder of PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png, or a zip of one, which is read
    as it is; without it, what wsi-idc download brought is taken, else data/ or the zip in it. What
    is left out goes into rejected.csv, what is kept but odd into flagged.csv, both beside the pack.
    Stopped or killed, the same command goes on.

    \b
    Examples:
      wsi-idc prepare ~/IDC_regular_ps50_idx5 --out data/idc.h5
      wsi-idc prepare archive.zip
    """
    from wsi_idc.data.open_data import default_tree
    from wsi_idc.data.prepare import prepare as pack_tree

    report = pack_tree(
        tree or default_tree(),
        out,
        patch_px=patch_px,
        mpp=mpp,
        num_workers=num_workers,
    )
    if as_json:
        echo_json(report.as_dict())
    else:
        _say_report(report)
    if strict and report.rejected:
        raise DataError(
            f"{len(report.rejected)} files were left out (--strict); see "
            f"{out.with_name('rejected.csv')}"
        )


def _say_report(report: "PrepareReport") -> None:
    info = report.info
    echo_table(
        [
            ("pack", report.pack),
            ("patches", f"{report.num_patches} of {report.num_patients} patients"),
            ("classes", f"{report.num_non_idc} non-IDC, {report.num_idc} IDC"),
            ("resolution", f"{info.mpp:g} um/px ({info.mpp_source})"),
            ("mean, std", f"{_numbers(info.mean)}, {_numbers(info.std)}"),
            ("edge patches", f"{report.num_edge}, padded white"),
        ]
    )
    if report.num_other_files:
        echo(f"{report.num_other_files} files that are not PNG were not looked at")
    _say_problems("left out", report.rejected, report.pack.with_name("rejected.csv"))
    flagged = report.pack.with_name("flagged.csv")
    _say_problems("noted", report.flagged, flagged)


def _say_problems(what: str, problems: "Sequence[FileIssue]", file: Path) -> None:
    """Name the first problems of each reason, and say where the others are."""
    for reason, count in sorted(Counter(problem.reason for problem in problems).items()):
        echo(f"{what}: {count} x {reason}")
        of_reason = [problem for problem in problems if problem.reason == reason]
        for problem in of_reason[:_NAMES_SHOWN]:
            echo(f"  {problem.path}: {problem.detail}")
        if count > _NAMES_SHOWN:
            echo(f"  and {count - _NAMES_SHOWN} more, in {file}")


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
