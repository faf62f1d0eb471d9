"""``wsi-idc synth``."""

from pathlib import Path

import click

from wsi_idc.cli.options import PATH, logging_options, say
from wsi_idc.config import MAX_SEED


@click.command()
@click.argument("folder", type=PATH)
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
def synth(folder: Path, num_patients: int, patches_per_patient: int, seed: int) -> None:
    """Draw a synthetic cohort into FOLDER.

    Small, procedural, in the layout of the Kaggle set; the same seed draws the same bytes.

    \b
    Example:
      wsi-idc synth cohort && wsi-idc prepare cohort
    """
    from wsi_idc.data.synth import write_cohort
    from wsi_idc.progress import progress

    with progress(num_patients, what="drawing", unit="patient") as bar:
        summary = write_cohort(
            folder,
            num_patients=num_patients,
            patches_per_patient=patches_per_patient,
            seed=seed,
            on_patient=lambda _: bar.update(1),
        )
    say(
        f"{folder}: {summary.patches} patches of {summary.patients} synthetic patients, "
        f"{summary.idc_patches} of them IDC, {summary.edge_patches} edge patches"
    )
