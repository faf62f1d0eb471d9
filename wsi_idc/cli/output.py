"""Output of the commands: results on standard output, notes on standard error."""

import json
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import click

from wsi_idc.core.errors import WsiIdcError


def one_line(text: object) -> str:
    """Return text as one line of printable characters: a file name may hold any."""
    line = " ".join(str(text).split("\n"))
    return "".join(char if char.isprintable() else "?" for char in line)


def echo(text: object) -> None:
    """Write one line of the result to standard output."""
    click.echo(one_line(text))


def echo_note(text: object) -> None:
    """Write one line about the result to standard error."""
    click.echo(one_line(text), err=True)


def echo_result(record: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Write a result to standard output.

    Args:
        record: The result as a JSON-ready value; what JSON does not have is written as text.
        lines: The result as lines of text.
        as_json: Write the record, not the lines.
    """
    if as_json:
        click.echo(json.dumps(record, indent=2, default=str))
        return
    for line in lines:
        echo(line)


def raise_if_any(failed: Sized, num_all: int, what: str) -> None:
    """Raise an error that counts what failed; the reasons are printed before."""
    if failed:
        raise WsiIdcError(f"{len(failed)} of {num_all} {what}; the reasons are above")


def table_lines(rows: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Yield names and values as aligned lines."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        yield f"{name:<{width}}  {value}"


def echo_table(rows: Iterable[tuple[str, object]]) -> None:
    """Write names and values to standard output, aligned."""
    echo_result(None, table_lines(rows), as_json=False)
