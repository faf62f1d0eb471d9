"""``wsi-idc prepare``: check patches and pack them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.config_file import config_option
from wsi_idc.cli.options import (
    PATH,
    TISSUE_PARAMETERS,
    Number,
    annotation_frame_option,
    changed,
    output_options,
    tissue_options,
    with_default,
)
from wsi_idc.cli.output import echo_note, echo_result, hanging_lines, raise_if_any, table_lines
from wsi_idc.core.errors import DataError
from wsi_idc.core.text import count, shorten_list

if TYPE_CHECKING:
    from wsi_idc.data.patch_index import FileIssue
    from wsi_idc.data.prepare import PrepareReport
    from wsi_idc.data.slide_pack import SlidePackReport


_NUM_SHOWN = 10
_TREE_OPTIONS = ("num_workers", "strict")
_SLIDE_OPTIONS = (
    *("annotations", "classes", "min_share", "unannotated", "annotation_frame"),
    *("save_patches", *TISSUE_PARAMETERS),
)


@click.command()
@click.argument("tree", type=PATH, required=False)
@with_default("--out", type=PATH, default=Path("data/idc.h5"), help="Path of the pack.")
@click.option(
    "--mpp",
    type=Number(min=0, min_open=True),
    help="Microns per pixel of the patches.  [default: 4; for a tree, recorded as assumed]",
)
@with_default("--patch-px", type=click.IntRange(8, 255), default=50)
@click.option("--num-workers", type=click.IntRange(min=1), help="[default: all cores, at most 16]")
@click.option("--strict", is_flag=True, help="Exit with code 1 if any file is left out.")
@click.option(
    "--slides",
    type=PATH,
    help="Cut patches from slides. Give one slide, or a CSV file with the column slide and the "
    "optional columns patient, mpp, mask and annotations.",
)
@click.option(
    "--annotations",
    type=PATH,
    help="Folder of annotation files: QuPath GeoJSON, ASAP XML, ImageScope XML or NDPA. The file "
    "of scan.svs is scan.geojson, for example.",
)
@click.option(
    "--classes",
    help='Meaning of each class, such as "Tumor=IDC, Stroma=non-IDC, Necrosis=ignore".  '
    "[default: the usual meaning of Tumor, Stroma and other common classes]",
)
@with_default(
    "--min-share",
    type=Number(min=0, min_open=True, max=1),
    default=0.5,
    help="Smallest fraction of a patch that a class must cover to become its label.",
)
@click.option(
    "--unannotated",
    type=click.Choice(["non-IDC", "unknown", "skip"]),
    help="Label of tissue outside all outlines; skip leaves out its patches.  [default: unknown; "
    "required if no outline is non-IDC]",
)
@annotation_frame_option
@tissue_options
@click.option(
    "--save-patches",
    type=PATH,
    help="Folder into which the labelled patches of the slides are also written as PNG files.",
)
@config_option
@output_options
def prepare(
    tree: Path | None,
    out: Path,
    mpp: float | None,
    patch_px: int,
    num_workers: int | None,
    strict: bool,
    slides: Path | None,
    as_json: bool,
    **slide_options: Any,
) -> None:
    """Check and pack patches, or cut and label patches of slides.

    TREE is a folder of files PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png, or a zip of such a
    folder; a zip is read without unpacking. Without TREE, the command reads the data set of wsi-idc
    download. If there is no download, the command reads data/, or the zip file in data/. Two tables
    are written beside the pack: rejected.csv lists the files that are not in the pack, and
    flagged.csv lists files that are in the pack but are unusual.

    With --slides, the command cuts patches where a slide has tissue. The class that covers most of
    a patch is the label of the patch. A table of the slides (NAME_slides.csv) and a picture of each
    slide with outlines and labels (NAME_slides/) are written beside the pack.

    If no patch of a patient or of a slide can be packed, the command names the patient or the slide
    and exits with 1. After a stop or a kill, the same command resumes.

    \b
    Examples:
      wsi-idc prepare ~/IDC_regular_ps50_idx5 --out data/idc.h5
      wsi-idc prepare archive.zip
      wsi-idc prepare --slides slides.csv --annotations qupath/
    """
    if slides is not None:
        if tree is not None:
            raise click.UsageError("give a patch tree or --slides, not both")
        if unused := changed(*_TREE_OPTIONS):
            raise click.UsageError(f"{unused[0]} is for a patch tree, not for --slides")
        _prepare_slides(slides, out, patch_px, mpp, as_json=as_json, **slide_options)
        return
    if unused := changed(*_SLIDE_OPTIONS):
        raise click.UsageError(f"{unused[0]} needs --slides")
    from wsi_idc.data.open_data import default_tree
    from wsi_idc.data.prepare import prepare as pack_tree

    report = pack_tree(
        tree or default_tree(), out, patch_px=patch_px, mpp=mpp, num_workers=num_workers
    )
    echo_result(report.as_dict(), _prepare_lines(report), as_json=as_json)
    if lost := report.lost_patients:
        raise DataError(
            f"no file of {count(len(lost), 'patient')} could be packed: {', '.join(lost)}; "
            f"the pack has the other patients, and {out.with_name('rejected.csv')} has the reasons"
        )
    if strict and report.rejected:
        raise DataError(
            f"{count(len(report.rejected), 'file was', 'files were')} left out (--strict); see "
            f"{out.with_name('rejected.csv')}"
        )


def _prepare_slides(
    slides: Path,
    out: Path,
    patch_px: int,
    mpp: float | None,
    *,
    annotations: Path | None,
    classes: str | None,
    min_share: float,
    unannotated: str | None,
    annotation_frame: str,
    save_patches: Path | None,
    as_json: bool,
    **tissue: Any,
) -> None:
    from wsi_idc.data.pack import Pack
    from wsi_idc.data.patch_tree_writer import write_patch_tree
    from wsi_idc.data.prepare import ASSUMED_MPP
    from wsi_idc.data.slide_cutter import LabelSettings
    from wsi_idc.data.slide_pack import prepare_slides
    from wsi_idc.slides.annotations import class_table
    from wsi_idc.slides.manifest import slide_rows
    from wsi_idc.slides.tiling import SlideSettings

    labels = LabelSettings(
        annotations, class_table(classes), min_share, unannotated, annotation_frame
    )
    report = prepare_slides(
        slide_rows(slides),
        out,
        settings=SlideSettings(**tissue),
        labels=labels,
        patch_px=patch_px,
        mpp=ASSUMED_MPP if mpp is None else mpp,
    )
    echo_result(report.as_dict(), _slides_lines(report), as_json=as_json)
    if save_patches is not None:
        num = write_patch_tree(Pack(out), save_patches)
        echo_note(f"{count(num, 'labelled patch', 'labelled patches')} in {save_patches}")
    raise_if_any(
        list(report.set_aside),
        len(report.slides),
        "slides could not be packed",
    )


def _slides_lines(report: "SlidePackReport") -> Iterator[str]:
    info, slides = report.info, report.slides
    packed = slides[slides["reason"] == ""]
    patches, idc, non_idc, unknown = packed[["patches", "idc", "non_idc", "unknown"]].sum()
    slides_text = f"{len(packed):,} of {count(packed['patient'].nunique(), 'patient')}"
    if report.num_kept:
        slides_text += f", {report.num_kept} kept from an earlier run"
    yield from table_lines(
        [
            ("pack", report.pack),
            ("slides", slides_text),
            ("patches", f"{patches:,}"),
            (
                "labels",
                f"{non_idc:,} non-IDC, {idc:,} IDC, {unknown:,} unknown",
            ),
            ("unannotated", f"tissue without outline: {report.unannotated}"),
            ("resolution", f"{info.mpp:g} um/px, {info.patch_px} px a side"),
            ("table", report.table),
            ("pictures", f"{report.pictures}/ (look at them before training)"),
        ]
    )
    for row in packed.head(_NUM_SHOWN).itertuples():
        counts = f"{row.idc} IDC, {row.non_idc} non-IDC, {row.unknown} unknown"
        yield f"  {row.patient}/{row.slide}: {counts}"
    if len(packed) > _NUM_SHOWN:
        yield f"  and {len(packed) - _NUM_SHOWN:,} more, in {report.table}"
    if report.stale_pictures:
        pictures = count(len(report.stale_pictures), "picture")
        yield from hanging_lines(
            "kept: ",
            f"{pictures} of slides that are not in the pack; remove the outdated ones: "
            f"{shorten_list(report.stale_pictures)}",
        )
    for slide, caution in report.cautions.items():
        yield from hanging_lines("caution: ", f"{slide} is {caution}")
    for reason in report.set_aside.values():
        yield f"left out: {reason}"


def _prepare_lines(report: "PrepareReport") -> Iterator[str]:
    info = report.info
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (info.mean, info.std))
    yield from table_lines(
        [
            ("pack", report.pack),
            ("patches", f"{report.num_patches:,} of {count(report.num_patients, 'patient')}"),
            ("classes", f"{report.num_non_idc:,} non-IDC, {report.num_idc:,} IDC"),
            ("resolution", f"{info.mpp:g} um/px ({info.mpp_source})"),
            ("mean, std", f"{mean}, {std}"),
            ("edge patches", f"{report.num_edge:,}, padded with white"),
        ]
    )
    if report.num_other_files:
        yield f"{count(report.num_other_files, 'file that is', 'files that are')} not PNG: ignored"
    yield from _issue_lines("left out", report.rejected, report.pack.with_name("rejected.csv"))
    yield from _issue_lines("unusual", report.flagged, report.pack.with_name("flagged.csv"))


def _issue_lines(label: str, issues: "Sequence[FileIssue]", table: Path) -> Iterator[str]:
    for reason, num in sorted(Counter(issue.reason for issue in issues).items()):
        yield f"{label}: {num:,} x {reason}"
        of_reason = [issue for issue in issues if issue.reason == reason]
        for issue in of_reason[:_NUM_SHOWN]:
            yield f"  {issue.path}: {issue.detail}"
        if num > _NUM_SHOWN:
            yield f"  and {num - _NUM_SHOWN:,} more, in {table}"
