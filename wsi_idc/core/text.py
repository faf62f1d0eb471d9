"""Text of messages: a count with its noun, a list of names, and lines that fit a terminal."""

import shutil
import textwrap
from collections.abc import Iterable
from typing import TextIO

# With the time of day and a space in front, a line of a log has at most 80 columns.
LOG_WIDTH = 71


def count(value: int, singular: str, plural: str = "") -> str:
    """Format a count with its noun, such as "1 patch" or "2 patches".

    Args:
        value: Number of things; a comma separates the thousands, as in "1,000".
        singular: Noun of one thing.
        plural: Noun of several things; if it is empty, ``singular`` gets an "s".
    """
    return f"{value:,} {singular if value == 1 else plural or f'{singular}s'}"


def count_patches(num_patches: int, num_patients: int) -> str:
    """Format the size of a data set, such as "2 patches of 1 patient"."""
    return f"{count(num_patches, 'patch', 'patches')} of {count(num_patients, 'patient')}"


def wrap_for_terminal(line: str, stream: TextIO) -> str:
    """Wrap a message to the width of the terminal; the lines end between words.

    Long words, such as paths, are not broken. If ``stream`` is not a terminal, the message is not
    changed, so that programs can search a log.
    """
    width = shutil.get_terminal_size().columns if stream.isatty() else 0
    if width <= 0:
        return line
    words = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": "  "}
    return "\n".join(
        textwrap.fill(part, width, **words) if len(part) > width else part  # type: ignore[arg-type]
        for part in line.split("\n")
    )


def join_items(items: Iterable[str]) -> str:
    """Join items by commas, in lines of at most 71 columns.

    With the time of day before the first line, a log has at most 80 columns. A line begins before
    an item that does not fit into the line above; an item is never broken.
    """
    lines = [""]
    for item in items:
        text = f"{lines[-1]}, {item}" if lines[-1] else item
        if lines[-1] and len(text) >= LOG_WIDTH:
            lines[-1] += ","
            lines.append(f"  {item}")
        else:
            lines[-1] = text
    return "\n".join(lines)


def shorten_list(names: Iterable[object], *, max_num: int = 5) -> str:
    """Join at most ``max_num`` names; if there are more names, add a text such as "and 7 more"."""
    texts = [str(name) for name in names]
    num_more = len(texts) - max_num
    return ", ".join(texts[:max_num]) + (f" and {num_more} more" if num_more > 0 else "")
