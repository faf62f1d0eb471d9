"""``wsi-idc synth``: draw a synthetic cohort or a synthetic slide."""

from pathlib import Path

import click

from wsi_idc.cli.options import PATH, logging_options, seed_option, with_default
from wsi_idc.cli.output import echo


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
@seed_option
@logging_options
def synth(folder: Path | None, slide: Path | None, seed: int, **sizes: int) -> None:
    """Draw a synthetic cohort into FOLDER, or draw a synthetic slide.

    The cohort has the folders and file names of the Kaggle data set. The slide is a pyramidal TIFF
    that contains its resolution. NAME.mask.png has the true labels of the slide at 4 um/px: 0 is
    background or fat, 1 is tissue, 2 is IDC. The same seed gives the same files.

    \b
    Examples:
      wsi-idc synth cohort && wsi-idc prepare cohort
      wsi-idc synth --slide slide.tif
    """
    if (folder is None) == (slide is None):
        raise click.UsageError("give FOLDER for a cohort or --slide FILE for a slide")
    if slide is not None:
        from wsi_idc.synthetic.slide import write_slide

        drawn = write_slide(slide, seed=seed)
        echo(f"{drawn.slide}: {drawn.width_px}x{drawn.height_px} px at {drawn.mpp:g} um/px")
        echo(f"{drawn.mask}: the true labels; {drawn.idc_fraction:.1%} of the tissue is IDC")
    elif folder is not None:
        from wsi_idc.synthetic.cohort import write_cohort

        summary = write_cohort(folder, **sizes, seed=seed)
        echo(
            f"{folder}: {summary.patches} patches of {summary.patients} synthetic patients, "
            f"{summary.idc_patches} of them IDC, {summary.edge_patches} edge patches"
        )
