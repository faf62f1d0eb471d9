"""Commands that make, check or describe a data set."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.options import (
    PATH,
    Number,
    data_option,
    logging_options,
    output_options,
    seed_option,
    with_default,
)
from wsi_idc.cli.output import echo, echo_result, table_lines
from wsi_idc.core.constants import MAX_SEED
from wsi_idc.core.errors import DataError

if TYPE_CHECKING:
    from wsi_idc.data.patch_index import FileIssue
    from wsi_idc.data.prepare import PrepareReport

_NUM_SHOWN = 10


@click.command()
@click.argument("folder", type=PATH, required=False)
@click.option("--slide", type=PATH, help="Draw one slide into this TIFF instead.")
@with_default("--num-patients", type=click.IntRange(1, 9999), default=12)
@with_default(
    "--patches-per-patient",
    type=click.IntRange(40, 100_000),
    default=150,
    help="Approximate number.",
)
@seed_option
@logging_options
def synth(
    folder: Path | None,
    slide: Path | None,
    num_patients: int,
    patches_per_patient: int,
    seed: int,
) -> None:
    """Draw a synthetic cohort into FOLDER, or a slide.

    The cohort is small and procedural, with the files of the Kaggle data set. The slide is a
    pyramidal TIFF with a resolution; NAME.mask.png beside it is its truth (0 background and fat,
    1 tissue, 2 IDC, at 4 um/px). The same seed draws the same bytes.

    \b
    Examples:
      wsi-idc synth cohort && wsi-idc prepare cohort
      wsi-idc synth --slide slide.tif
    """
    if (folder is None) == (slide is None):
        raise click.UsageError("give FOLDER for a cohort or --slide FILE for a slide")
    if slide is not None:
        from wsi_idc.synthetic.write import write_slide

        drawn = write_slide(slide, seed=seed)
        echo(f"{drawn.slide}: {drawn.width_px}x{drawn.height_px} px at {drawn.mpp:g} um/px")
        echo(f"{drawn.mask}: its truth, {drawn.idc_fraction:.1%} of the tissue is IDC")
    elif folder is not None:
        from wsi_idc.synthetic.write import write_cohort

        sizes = {"num_patients": num_patients, "patches_per_patient": patches_per_patient}
        summary = write_cohort(folder, **sizes, seed=seed)
        echo(
            f"{folder}: {summary.patches} patches of {summary.patients} synthetic patients, "
            f"{summary.idc_patches} of them IDC, {summary.edge_patches} edge patches"
        )


@click.command()
@output_options
def download(as_json: bool) -> None:
    """Download the Kaggle data set.

    About 3 GB, and as much again unpacked, through kagglehub. Files that are there are not
    downloaded again, and an interrupted download resumes. The files are in kagglehub's cache, which
    KAGGLEHUB_CACHE moves; data/source.json holds its path for wsi-idc prepare.

    \b
    Example:
      wsi-idc download && wsi-idc prepare
    """
    from wsi_idc.data.download import download as download_data
    from wsi_idc.data.open_data import DEFAULT_FOLDER

    path = download_data(Path(DEFAULT_FOLDER))
    lines = (f"data set  {path}", "next      wsi-idc prepare")
    echo_result({"path": path}, lines, as_json=as_json)


@click.command("fetch-weights")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@logging_options
def fetch_weights(models: tuple[str, ...]) -> None:
    """Download ImageNet weights of MODELs.

    They are stored in torchvision's cache, which TORCH_HOME moves. A MODEL is resnet50 or another
    classifier of torchvision. Run it where there is internet; training downloads nothing.

    \b
    Example:
      wsi-idc fetch-weights resnet50 mobilenet_v3_small
    """
    from wsi_idc.models.pretrained import fetch_imagenet
    from wsi_idc.models.registry import architecture

    # The list is complete before the first download: a wrong name stops the command here.
    for arch in [architecture(model) for model in models]:
        echo(fetch_imagenet(arch))


@click.command()
@click.argument("tree", type=PATH, required=False)
@with_default("--out", type=PATH, default=Path("data/idc.h5"), help="The pack.")
@click.option(
    "--mpp",
    type=Number(min=0, min_open=True),
    help="Microns per pixel of the patches.  [default: 4, noted as assumed]",
)
@with_default("--patch-px", type=click.IntRange(8, 255), default=50)
@click.option("--num-workers", type=click.IntRange(min=1), help="[default: the available cores]")
@click.option("--strict", is_flag=True, help="Exit with 1 if any file is left out.")
@output_options
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
    without unpacking. Without TREE the download of wsi-idc download is taken, else data/ or the zip
    in it. rejected.csv lists the files that are left out, flagged.csv those that are kept but
    unusual; both are beside the pack. After a stop or a kill the same command resumes.

    \b
    Examples:
      wsi-idc prepare ~/IDC_regular_ps50_idx5 --out data/idc.h5
      wsi-idc prepare archive.zip
    """
    from wsi_idc.data.open_data import default_tree
    from wsi_idc.data.prepare import prepare as pack_tree

    report = pack_tree(
        tree or default_tree(), out, patch_px=patch_px, mpp=mpp, num_workers=num_workers
    )
    echo_result(report.as_dict(), _prepare_lines(report), as_json=as_json)
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


@click.command()
@data_option
@with_default("--out", type=PATH, default=Path("explore"), help="Folder of the results.")
@with_default(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    help="Seed of the sample patches and of their augmentation.",
)
@output_options
def explore(data: Path | None, out: Path, seed: int, as_json: bool) -> None:
    """Describe a data set before training on it.

    Writes tables (CSV), figures (PNG and SVG) and summary.json: class balance, channels, sizes,
    sample patches and their augmentations, a stitched patient, and hints at possible errors: labels
    unlike all 8 neighbors, near-identical patches of different patients, patches without tissue,
    patches at the edge of the glass, unusual stains.

    \b
    Example:
      wsi-idc explore --data data/idc.h5 --out explore
    """
    from wsi_idc.data.open_data import open_data

    pack = open_data(data)

    from wsi_idc.explore.explore import explore as explore_pack

    summary = explore_pack(pack, out, seed=seed)
    echo_result(summary, _explore_lines(summary, out), as_json=as_json)


def _explore_lines(summary: dict[str, Any], out: Path) -> Iterator[str]:
    hints, duplicates = summary["hints"], summary["near_duplicates"]
    rules, stains = hints["rules"], hints["stain_outliers"]
    classes = {name: row for name, row in summary["classes"].items() if name != "all"}
    yield from table_lines(
        [
            ("patches", f"{summary['patches']} of {summary['patients']} patients"),
            ("classes", ", ".join(f"{row['patches']} {name}" for name, row in classes.items())),
            ("IDC fraction", _percent(summary["idc_fraction"])),
            ("  of a patient", _range(summary["idc_fraction_of_patients"], _percent)),
            ("patches of a patient", _range(summary["patches_of_patients"], "{:g}".format)),
            ("patients with one class", summary["patients_with_one_class"]),
            ("complete 3x3", f"{summary['complete_3x3']} patches have all 8 neighbors"),
            (
                "small patches",
                f"{summary['small_patches']}, {summary['small_inside_slide']} of them inside the "
                "slide",
            ),
            *((f"{kind} hints", f"{n} ({rules[kind]})") for kind, n in hints["patches"].items()),
            ("stain hints", f"{len(stains)} ({rules['stain']})"),
            (
                "near duplicates",
                f"{duplicates['groups']} groups across patients, {duplicates['patches']} patches "
                f"of {duplicates['patients']} patients",
            ),
        ]
    )
    if stains:
        yield f"odd stains: {', '.join(stains)}"
    yield f"{out}/summary.json, {len(summary['tables'])} tables, figures in {out}/figures"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _range(quantiles: dict[str, Any], form: Callable[[float], str]) -> str:
    if quantiles["median"] is None:
        return "unknown"
    low, middle, high = (form(quantiles[name]) for name in ("min", "median", "max"))
    return f"{low} to {high}, median {middle}"
