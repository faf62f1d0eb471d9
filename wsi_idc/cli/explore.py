"""``wsi-idc explore``: describe a data set."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from wsi_idc.cli.config_file import config_option
from wsi_idc.cli.options import PATH, data_option, output_options, with_default
from wsi_idc.cli.output import echo_result, table_lines
from wsi_idc.core.constants import MAX_SEED
from wsi_idc.core.text import count, count_patches


@click.command()
@data_option
@with_default("--out", type=PATH, default=Path("explore"), help="Folder of the results.")
@with_default(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    help="Seed of the sample patches and of their augmentation.",
)
@config_option
@output_options
def explore(data: Path | None, out: Path, seed: int, as_json: bool) -> None:
    """Describe a data set before training on it.

    The command writes tables (CSV), figures (PNG and SVG), summary.json and index.html. This page
    has all figures and the first rows of the tables. The figures show the class balance, the color
    channels, the sizes, sample patches and their augmentations, and all patches of one patient as
    one image. The tables list possible errors in the data: labels that differ from all 8 neighbors,
    near-identical patches of different patients, patches without tissue, patches at the edge of the
    glass, and unusual stains.

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
            ("patches", f"{summary['patches']:,} of {count(summary['patients'], 'patient')}"),
            ("classes", ", ".join(f"{row['patches']:,} {name}" for name, row in classes.items())),
            ("IDC fraction", _percent(summary["idc_fraction"])),
            ("  of a patient", _range(summary["idc_fraction_of_patients"], _percent)),
            ("patches of a patient", _range(summary["patches_of_patients"], "{:g}".format)),
            ("patients with one class", summary["patients_with_one_class"]),
            ("complete 3x3", f"{summary['complete_3x3']:,} patches have all 8 neighbors"),
            (
                "small patches",
                f"{summary['small_patches']:,}, "
                f"{summary['small_inside_slide']:,} of them inside the slide",
            ),
            *((f"{kind} hints", f"{n:,} ({rules[kind]})") for kind, n in hints["patches"].items()),
            ("stain hints", f"{len(stains)} ({rules['stain']})"),
            (
                "near duplicates",
                f"{count(duplicates['groups'], 'group')} across patients, "
                f"{count_patches(duplicates['patches'], duplicates['patients'])}",
            ),
        ]
    )
    if stains:
        yield f"patients with unusual stains: {', '.join(stains)}"
    yield f"{out}/summary.json, {count(len(summary['tables']), 'table')}, figures in {out}/figures"
    yield f"open {out}/index.html"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _range(quantiles: dict[str, Any], form: Callable[[float], str]) -> str:
    if quantiles["median"] is None:
        return "unknown"
    low, middle, high = (form(quantiles[name]) for name in ("min", "median", "max"))
    return f"{low} to {high}, median {middle}"
