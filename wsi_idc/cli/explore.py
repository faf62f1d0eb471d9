"""``wsi-idc explore``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wsi_idc.cli.options import PATH, data_option, json_option, logging_options
from wsi_idc.cli.output import echo, echo_json, echo_table
from wsi_idc.core.constants import MAX_SEED


@click.command()
@data_option
@click.option(
    "--out", type=PATH, default=Path("explore"), show_default=True, help="Folder of the results."
)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help="Of the choice of sample patches and of their augmentation.",
)
@json_option
@logging_options
def explore(data: Path | None, out: Path, seed: int, as_json: bool) -> None:
    """Look at a data set before training on it.

    Writes tables (CSV), figures (PNG and SVG) and summary.json: class balance, channels, sizes,
    samples, what each augmentation makes of some, a stitched patient, and hints at what may be
    wrong: labels unlike all 8 neighbours, near-identical patches of different patients, patches
    without tissue, the edge of the glass, odd stains.

    \b
    Example:
      wsi-idc explore --data data/idc.h5 --out explore
    """
    from wsi_idc.data.open_data import open_data
    from wsi_idc.explore.explore import explore as explore_pack

    summary = explore_pack(open_data(data), out, seed=seed)
    if as_json:
        echo_json(summary)
    else:
        _say_summary(summary, out)


def _say_summary(summary: dict[str, Any], out: Path) -> None:
    hints, alike = summary["hints"], summary["near_duplicates"]
    classes = {name: row for name, row in summary["classes"].items() if name != "all"}
    echo_table(
        [
            ("patches", f"{summary['patches']} of {summary['patients']} patients"),
            ("classes", ", ".join(f"{row['patches']} {name}" for name, row in classes.items())),
            ("IDC fraction", _share(summary["idc_fraction"])),
            ("  of a patient", _range(summary["idc_fraction_of_patients"], _share)),
            ("patches of a patient", _range(summary["patches_of_patients"], "{:g}".format)),
            ("patients with one class", summary["patients_with_one_class"]),
            ("complete 3x3", f"{summary['complete_3x3']} patches have all 8 neighbours"),
            (
                "small patches",
                f"{summary['small_patches']}, {summary['small_inside_slide']} of them inside the "
                "slide",
            ),
            *((f"{kind} hints", _rule(hints, kind)) for kind in hints["patches"]),
            ("stain hints", f"{len(hints['stain_outliers'])} ({hints['rules']['stain']})"),
            (
                "near duplicates",
                f"{alike['groups']} groups across patients, {alike['patches']} patches of "
                f"{alike['patients']} patients",
            ),
        ]
    )
    if hints["stain_outliers"]:
        echo(f"odd stains: {', '.join(hints['stain_outliers'])}")
    echo(f"{out}/summary.json, {len(summary['tables'])} tables, figures in {out}/figures")


def _rule(hints: dict[str, Any], kind: str) -> str:
    return f"{hints['patches'][kind]} ({hints['rules'][kind]})"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _range(quantiles: dict[str, Any], form: Callable[[float], str]) -> str:
    if quantiles["median"] is None:
        return "unknown"
    low, middle, high = (form(quantiles[name]) for name in ("min", "median", "max"))
    return f"{low} to {high}, median {middle}"
