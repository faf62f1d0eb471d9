"""``wsi-idc synth``: draw a synthetic cohort or a synthetic slide."""

from pathlib import Path

import click

from wsi_idc.cli.options import PATH, changed, logging_options, seed_option, with_default
from wsi_idc.cli.output import echo
from wsi_idc.core.text import count


@click.command()
@click.argument("folder", type=PATH, required=False)
@click.option("--slide", type=PATH, help="TIFF file for one slide; no cohort is drawn.")
@with_default("--num-patients", type=click.IntRange(1, 9999), default=12)
@with_default(
    "--patches-per-patient",
    type=click.IntRange(40, 100_000),
    default=150,
    help="Approximate number of patches.",
)
@click.option(
    "--num-slides",
    type=click.IntRange(1, 9999),
    help="Number of slides; the cohort then has slides with outlines instead of patches.",
)
@seed_option
@logging_options
def synth(
    folder: Path | None,
    slide: Path | None,
    num_patients: int,
    patches_per_patient: int,
    num_slides: int | None,
    seed: int,
) -> None:
    """Draw a synthetic cohort into FOLDER, or a synthetic slide.

    The cohort has the folders and file names of the Kaggle data set. With --num-slides, it has
    slides in several formats, their manifest slides.csv, and a folder annotations/. This folder has
    outlines of tumor and normal tissue in the format of QuPath.

    With --slide, the command draws one pyramidal TIFF that contains its resolution. NAME.mask.png
    has the true labels of this slide at 4 um/px: 0 is background or fat, 1 is tissue, 2 is IDC. The
    same seed gives the same files.

    \b
    Examples:
      wsi-idc synth cohort && wsi-idc prepare cohort
      wsi-idc synth scans --num-slides 20
      wsi-idc synth --slide slide.tif
    """
    if (folder is None) == (slide is None):
        raise click.UsageError("give FOLDER for a cohort or --slide FILE for a slide")
    is_patches = folder is not None and num_slides is None
    if unused := () if is_patches else changed("patches_per_patient"):
        raise click.UsageError(f"{unused[0]} is for a cohort of patches")
    if slide is not None:
        if unused := changed("num_slides", "num_patients"):
            raise click.UsageError(f"{unused[0]} is for a cohort, not for --slide")
        from wsi_idc.synthetic.slide import write_slide

        drawn = write_slide(slide, seed=seed)
        echo(f"{drawn.slide}: {drawn.width_px}x{drawn.height_px} px at {drawn.mpp:g} um/px")
        echo(f"{drawn.mask}: the true labels; {drawn.idc_fraction:.1%} of the tissue is IDC")
    elif folder is not None and num_slides is not None:
        if num_slides < num_patients:
            raise click.UsageError(
                f"--num-slides {num_slides} is less than --num-patients {num_patients}"
            )
        from wsi_idc.synthetic.slide_cohort import write_slide_cohort

        slides = write_slide_cohort(
            folder, num_slides=num_slides, num_patients=num_patients, seed=seed
        )
        num_slides_text = count(len(slides.slides), "slide")
        echo(f"{slides.manifest}: {num_slides_text} of {count(num_patients, 'patient')}")
        echo(f"{slides.annotations}: outlines of tumor and normal tissue")
    elif folder is not None:
        from wsi_idc.synthetic.cohort import write_cohort

        summary = write_cohort(
            folder, num_patients=num_patients, patches_per_patient=patches_per_patient, seed=seed
        )
        echo(
            f"{folder}: {count(summary.patches, 'patch', 'patches')} of "
            f"{count(summary.patients, 'synthetic patient')}, "
            f"{summary.idc_patches:,} of them IDC, {summary.edge_patches:,} at an edge"
        )
