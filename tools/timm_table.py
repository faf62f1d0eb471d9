"""Write docs/timm-models.csv and docs/timm-models.md: the networks of timm that have a CAM here.

    python tools/timm_table.py                 # names that are not in the table, in some minutes
    python tools/timm_table.py levit resnet    # these families again

Each network is built without weights. A network that takes longer than a minute counts as refused.
After Ctrl-C, both files have the rows so far, and the next call continues. Delete the table to
build all networks again, for example with another version of timm.
"""

import csv
import itertools
import multiprocessing
import signal
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import click
import timm
from timm.models._registry import _model_to_module

from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.timm_models import examine
from wsi_idc.runtime.resources import available_cores

_DOCS = Path(__file__).parents[1] / "docs"
TABLE, PAGE = _DOCS / "timm-models.csv", _DOCS / "timm-models.md"
_SECONDS = 60
_PAGE = """# Networks of timm

`python tools/timm_table.py` writes this page and [a table of names](timm-models.csv).
timm {version} has {num_all:,} names. {num:,} of them were built, without weights: {num_supported:,}
are supported, with each tag of their weights. `wsi-idc models timm:NAME` checks a name with the
installed version of timm.
[Other encoders](howto/encoders.md) explains how to use a network.

## Refused

| reason | names |
|---|---|
{refused}

## Families

Input and cells are those of the supported networks, from the smallest to the largest: the side of
the usual input, and the cells on a side of the last feature map.

| family | supported | refused | input, px | cells |
|---|---:|---:|---|---|
{families}
"""


class Row(NamedTuple):
    """A row of the table; ``input_px`` and ``cam`` are "" if ``reason`` is not."""

    name: str
    family: str
    input_px: str
    cam: str
    reason: str


class _TooSlowError(BaseException):  # no other code catches it
    pass


def classify(name: str) -> Row:
    """Build a network of timm without weights, and return its row."""
    full, family = f"timm:{name}", _model_to_module[name]
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)  # time of the processor
    try:
        arch, num_rows = examine(full)
    except _TooSlowError:
        return Row(name, family, "", "", f"not built within {_SECONDS} s")
    except CheckpointError as error:
        return Row(name, family, "", "", str(error).removeprefix(full).lstrip(": "))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return Row(name, family, str(arch.input_px), f"{num_rows} x {num_rows}", "")


def _start_worker() -> None:
    def stop(*_: Any) -> None:
        raise _TooSlowError

    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_table() -> dict[str, Row]:
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as file:
        return {row["name"]: Row(**row) for row in csv.DictReader(file)}


def _page(rows: list[Row]) -> str:
    """Return docs/timm-models.md: the refused names by reason, and numbers of each family."""
    families, reasons = defaultdict(list), defaultdict(list)
    for row in rows:
        families[row.family].append(row)
        if row.reason:
            reasons[row.reason.replace("|", "/")].append(f"`{row.name}`")
    num_refused = sum(map(len, reasons.values()))
    return _PAGE.format(
        version=timm.__version__,
        num_all=len(timm.list_models()),
        num=len(rows),
        num_supported=len(rows) - num_refused,
        refused="\n".join(
            f"| {reason} | {', '.join(names)} |" for reason, names in reasons.items()
        ),
        families="\n".join(_family_row(name, family) for name, family in families.items()),
    )


def _family_row(name: str, rows: list[Row]) -> str:
    supported = [row for row in rows if not row.reason]
    sizes = sorted({int(row.input_px) for row in supported})
    grids = sorted({int(row.cam.split()[0]) for row in supported})
    ranges = (
        " to ".join(map(str, sorted({*values[:1], *values[-1:]}))) for values in (sizes, grids)
    )
    return f"| {name} | {len(supported)} | {len(rows) - len(supported)} | {' | '.join(ranges)} |"


def main(families: list[str]) -> None:
    """Build the networks and write both files."""
    names = timm.list_models()
    table = {name: row for name, row in _read_table().items() if name in names}
    by_family = {_model_to_module[name]: name for name in names}
    # One network of each family is first, because a user may stop this script.
    names = list(dict.fromkeys([*by_family.values(), *names]))
    is_wanted = [_model_to_module[n] in families if families else n not in table for n in names]
    wanted = list(itertools.compress(names, is_wanted))
    context = multiprocessing.get_context("spawn")
    try:
        with context.Pool(available_cores(), _start_worker) as pool:
            for row in pool.imap_unordered(classify, wanted):
                table[row.name] = row
                click.echo(", ".join(row))
    except KeyboardInterrupt:
        click.echo("stopped")
    finally:  # also after an unknown error: no row is built twice
        _write(table)
        click.echo(f"{len(table)} of {len(names)} names are in the table")


def _write(table: dict[str, Row]) -> None:
    rows = sorted(table.values(), key=lambda row: (row.family, row.name))
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([Row._fields, *rows])
    PAGE.write_text(_page(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
