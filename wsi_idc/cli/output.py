"""Print the output of commands: results on standard output, notes on standard error."""

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import click

from wsi_idc.core.errors import WsiIdcError
from wsi_idc.core.text import wrap_for_terminal

_WIDTH = 80


def one_line(text: object) -> str:
    """Convert ``text`` to one line; replace unprintable characters by "?"."""
    line = " ".join(str(text).split("\n"))
    return "".join(char if char.isprintable() else "?" for char in line)


def echo(text: object) -> None:
    """Write one line of the result to standard output."""
    click.echo(one_line(text))


def echo_note(text: object) -> None:
    """Write one line, such as a warning, to standard error."""
    click.echo(wrap_for_terminal(one_line(text), sys.stderr), err=True)


def echo_result(record: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Write a result to standard output.

    Args:
        record: The result for JSON. Values of types unknown to JSON, such as paths, become text.
        lines: The result as lines of text for a person.
        as_json: Write ``record`` as JSON instead of ``lines``.
    """
    if as_json:
        click.echo(json.dumps(record, indent=2, default=str))
        return
    for line in lines:
        echo(line)


def raise_if_any(failed: Sized, num_all: int, what: str) -> None:
    """Raise WsiIdcError if ``failed`` is not empty; the caller must print the reasons before.

    The error message begins with "1 of 5 maps were not exported" if ``failed`` has 1 item,
    ``num_all`` is 5 and ``what`` is "maps were not exported".
    """
    if failed:
        raise WsiIdcError(f"{len(failed)} of {num_all} {what}; the reasons are above")


def table_lines(rows: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Yield the lines of a table of names and values; a line has at most 80 characters."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        yield from hanging_lines(f"{name:<{width}}  ", value)


def hanging_lines(start: str, text: object) -> Iterator[str]:
    """Yield ``start`` and ``text`` in lines of at most 80 characters.

    All lines of ``text`` begin in the same column, after ``start``. A long word, such as a path,
    is not broken, so that it can be copied: a line with a long word may have more characters.
    """
    width = _WIDTH - len(start)
    words = {"break_long_words": False, "break_on_hyphens": False}
    for line in textwrap.wrap(one_line(text), width, **words) or [""]:  # type: ignore[arg-type]
        yield start + line
        start = " " * len(start)


def echo_table(rows: Iterable[tuple[str, object]]) -> None:
    """Write a table of names and values to standard output; align the values."""
    echo_result(None, table_lines(rows), as_json=False)
