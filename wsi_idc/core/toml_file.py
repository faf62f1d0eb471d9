"""Read TOML job files, and check each key.

Each function raises ``JobError`` if the file cannot be read, or if a key or value is not valid.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wsi_idc.core.errors import JobError
from wsi_idc.core.files import regular_file

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)
_MAX_BYTES = 1_000_000
_MAX_DOTS = 500  # per line: tomllib takes quadratic time for a key with many dots
_MAX_NUMBER = 2**63 - 1  # largest integer that every TOML reader supports
_TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def load_toml(path: Path, *, remedy: str = "give a job file") -> dict[str, Any]:
    """Read a TOML file of at most 1 MB; the error of a missing file ends with ``remedy``."""
    try:
        text = regular_file(path, _MAX_BYTES).read_text(encoding="utf-8-sig")
        if max(line.count(".") for line in text.split("\n")) > _MAX_DOTS:
            raise ValueError(f"a line has more than {_MAX_DOTS} dots")
        return tomllib.loads(text)
    except OSError as error:
        raise JobError(f"{path}: {error.strerror}; {remedy}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise JobError(f"{path}: not a readable TOML file ({error})") from None


def command_and_name(
    content: Mapping[str, Any], path: Path, commands: Iterable[str]
) -> tuple[str, str]:
    """Return the command and the name of a job; the default name is the stem of the job file."""
    command, known = content.get("command"), list(commands)
    if not isinstance(command, str) or command not in known:
        hint = _did_you_mean(str(command), known)
        raise JobError(f"command must be one of {', '.join(known)}, not {command!r}{hint}")
    name: str = typed("name", content.get("name", path.stem), str)
    if not _NAME.fullmatch(name):
        raise JobError(f"name {name!r} is not a plain name; use letters, digits, - and _")
    return command, name


def table(content: Mapping[str, Any], key: str, known: Iterable[str]) -> dict[str, Any]:
    """Return the table ``key`` of a job file; {} if the file has no such table.

    ``known`` lists the keys that the table may have.
    """
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise JobError(f"{key} must be a table: write [{key}]")
    check_keys(f"[{key}]", value, known)
    return value


def check_keys(where: str, content: Iterable[str], known: Iterable[str]) -> None:
    """Raise JobError if ``content`` has a key that is not in ``known``.

    The message begins with ``where`` and names a similar key, or all keys in ``known``.
    """
    known = list(known)
    for key in content:
        if key not in known:
            hint = _did_you_mean(key, known) or f"; permitted: {', '.join(known)}"
            raise JobError(f"{where} has an unknown key {key!r}{hint}")


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def typed(name: str, value: Any, expected: type) -> Any:
    """Return ``value`` if it has the type ``expected``, else raise JobError.

    If ``expected`` is float, an integer is converted to a float.
    """
    if type(value) is int and not -_MAX_NUMBER <= value <= _MAX_NUMBER:
        raise JobError(f"{name} is too large a number")
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise JobError(f"{name} must be {_TYPE_NAMES[expected]}, not {value!r}")
    if isinstance(value, str) and not value.isprintable():
        raise JobError(f"{name} must be one line of printable text, not {value!r}")
    return value
