"""``wsi-idc synth``."""

from pathlib import Path

import click

from wsi_idc.cli.options import PATH, logging_options
from wsi_idc.cli.output import echo
from wsi_idc.core.constants import MAX_SEED


@click.command()
@click.argument("folder", type=PATH, required=False)
@click.option("--slide", type=PATH, help="Draw one slide into this TIFF instead.")
@click.option("--num-patients", type=click.IntRange(1, 9999), default=12, show_default=True)
@click.option(
    "--patches-per-patient",
    type=click.IntRange(40, 100_000),
    default=150,
    show_default=True,
    help="About so many.",
)
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True)
@logging_options
def synth(
    folder: Path | None,
    slide: Path | None,
    num_patients: int,
    patches_per_patient: int,
    seed: int,
) -> None:
    """Draw a synthetic cohort into FOLDER, or a slide.

    The cohort is small, procedural, in the layout of the Kaggle set. The slide is a pyramidal TIFF
    with a resolution; its truth goes beside it as NAME.mask.png (0 background and fat, 1 tissue,
    2 IDC, at 4 um/px). The same seed draws the same bytes.

    \b
    Examples:
      wsi-idc synth cohort && wsi-idc prepare cohort
      wsi-idc synth --slide slide.tif
    """
    if (folder is None) == (slide is None):
        raise click.UsageError("give FOLDER for a cohort or --slide FILE for a slide")
    if slide is not None:
        _draw_slide(slide, seed=seed)
    elif folder is not None:
        _draw_cohort(
            folder, num_patients=num_patients, patches_per_patient=patches_per_patient, seed=seed
        )


def _draw_slide(path: Path, *, seed: int) -> None:
    from wsi_idc.synthetic.slide import write_slide

    found = write_slide(path, seed=seed)
    echo(f"{found.slide}: {found.width_px}x{found.height_px} px at {found.mpp:g} um/px")
    echo(f"{found.mask}: its truth, {found.idc_fraction:.1%} of the tissue is IDC")


def _draw_cohort(folder: Path, *, num_patients: int, patches_per_patient: int, seed: int) -> None:
    from wsi_idc.core.progress import progress
    from wsi_idc.synthetic.cohort import write_cohort

    with progress(num_patients, what="drawing", unit="patient") as bar:
        summary = write_cohort(
            folder,
            num_patients=num_patients,
            patches_per_patient=patches_per_patient,
            seed=seed,
            on_patient=lambda _: bar.update(1),
        )
    echo(
        f"{folder}: {summary.patches} patches of {summary.patients} synthetic patients, "
        f"{summary.idc_patches} of them IDC, {summary.edge_patches} edge patches"
    )
