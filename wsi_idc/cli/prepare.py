"""``wsi-idc prepare``: check patches and pack them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.options import PATH, Number, output_options, with_default
from wsi_idc.cli.output import echo_result, table_lines
from wsi_idc.core.errors import DataError

if TYPE_CHECKING:
    from wsi_idc.data.patch_index import FileIssue
    from wsi_idc.data.prepare import PrepareReport


_NUM_SHOWN = 10


@click.command()
@click.argument("tree", type=PATH, required=False)
@with_default("--out", type=PATH, default=Path("data/idc.h5"), help="Path of the pack.")
@click.option(
    "--mpp",
    type=Number(min=0, min_open=True),
    help="Microns per pixel of the patches.  [default: 4, recorded as an assumption]",
)
@with_default("--patch-px", type=click.IntRange(8, 255), default=50)
@click.option("--num-workers", type=click.IntRange(min=1), help="[default: all available cores]")
@click.option("--strict", is_flag=True, help="Exit with code 1 if any file is left out.")
@output_options
def prepare(tree: Path | None, out: Path, strict: bool, as_json: bool, **options: Any) -> None:
    """Check patches and pack them into one file.

    TREE is a folder of files PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png, or a zip of such a
    folder; a zip is read without unpacking. Without TREE, the command reads the data set of wsi-idc
    download. If there is no download, the command reads data/, or the zip file in data/.

    Two tables are written beside the pack. rejected.csv lists the files that are not in the pack.
    flagged.csv lists files that are in the pack but are unusual. If no file of a patient is in the
    pack, the command names the patient and exits with 1. After a stop or a kill, the same command
    resumes.

    \b
    Examples:
      wsi-idc prepare ~/IDC_regular_ps50_idx5 --out data/idc.h5
      wsi-idc prepare archive.zip
    """
    from wsi_idc.data.open_data import default_tree
    from wsi_idc.data.prepare import prepare as pack_tree

    report = pack_tree(tree or default_tree(), out, **options)
    echo_result(report.as_dict(), _prepare_lines(report), as_json=as_json)
    if lost := report.lost_patients:
        raise DataError(
            f"no file of {len(lost)} patients could be packed: {', '.join(lost)}; the pack has the "
            f"other patients, and {out.with_name('rejected.csv')} has the reasons"
        )
    if strict and report.rejected:
        raise DataError(
            f"{len(report.rejected)} files were left out (--strict); see "
            f"{out.with_name('rejected.csv')}"
        )


def _prepare_lines(report: "PrepareReport") -> Iterator[str]:
    info = report.info
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (info.mean, info.std))
    yield from table_lines(
        [
            ("pack", report.pack),
            ("patches", f"{report.num_patches} of {report.num_patients} patients"),
            ("classes", f"{report.num_non_idc} non-IDC, {report.num_idc} IDC"),
            ("resolution", f"{info.mpp:g} um/px ({info.mpp_source})"),
            ("mean, std", f"{mean}, {std}"),
            ("edge patches", f"{report.num_edge}, padded white"),
        ]
    )
    if report.num_other_files:
        yield f"{report.num_other_files} files that are not PNG were ignored"
    yield from _issue_lines("left out", report.rejected, report.pack.with_name("rejected.csv"))
    yield from _issue_lines("noted", report.flagged, report.pack.with_name("flagged.csv"))


def _issue_lines(label: str, issues: "Sequence[FileIssue]", table: Path) -> Iterator[str]:
    for reason, count in sorted(Counter(issue.reason for issue in issues).items()):
        yield f"{label}: {count} x {reason}"
        of_reason = [issue for issue in issues if issue.reason == reason]
        for issue in of_reason[:_NUM_SHOWN]:
            yield f"  {issue.path}: {issue.detail}"
        if count > _NUM_SHOWN:
            yield f"  and {count - _NUM_SHOWN} more, in {table}"
