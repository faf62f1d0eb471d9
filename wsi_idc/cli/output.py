"""How commands say their result on standard output."""

import json
from collections.abc import Iterable
from typing import Any

import click


def one_line(text: object) -> str:
    """Return text as one line of printable characters, whatever a file name holds."""
    line = " ".join(str(text).split("\n"))
    return "".join(char if char.isprintable() else "?" for char in line)


def echo(text: str) -> None:
    """Write one line of the result to standard output."""
    click.echo(one_line(text))


def echo_json(value: Any) -> None:
    """Write the result to standard output as JSON."""
    click.echo(json.dumps(value, indent=2, default=str))


def echo_table(rows: Iterable[tuple[str, object]]) -> None:
    """Write names and values to standard output, aligned."""
    rows = [(name, str(value)) for name, value in rows]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        echo(f"{name:<{width}}  {value}")
