"""Text of messages: a count with its noun, a list of names, and lines that fit a terminal."""

import shutil
import textwrap
from collections.abc import Iterable
from typing import TextIO


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
    wrapped, so that a log has one line for each message.
    """
    width = shutil.get_terminal_size().columns if stream.isatty() else 0
    if not 0 < width < len(line):
        return line
    words = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(line, width, subsequent_indent="  ", **words)  # type: ignore[arg-type]


def shorten_list(names: Iterable[object], *, max_num: int = 5) -> str:
    """Join at most ``max_num`` names; if there are more names, add a text such as "and 7 more"."""
    texts = [str(name) for name in names]
    num_more = len(texts) - max_num
    return ", ".join(texts[:max_num]) + (f" and {num_more} more" if num_more > 0 else "")
