"""A TOML file and its keys, checked one by one: what every job file has in common."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wsi_idc.core.errors import JobError

MAX_TASKS = 10_000
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)
_MAX_BYTES = 1_000_000
_MAX_NUMBER = 2**63 - 1  # what TOML promises
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def load_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds.

    Raises:
        JobError: It cannot be read.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise JobError(f"{path}: not a regular file; give a job file")
        if path.stat().st_size > _MAX_BYTES:
            raise JobError(f"{path}: too large for a job file; give a TOML file of some lines")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"{path}: {error.strerror}; give a job file") from None
    # ValueError: what TOMLDecodeError and UnicodeDecodeError have in common.
    except (ValueError, RecursionError) as error:
        raise JobError(f"{path}: not a readable TOML file ({error})") from None


def command_and_name(
    content: Mapping[str, Any], path: Path, commands: Iterable[str]
) -> tuple[str, str]:
    """Return the command of a job file and the job's name, the file's stem by default.

    Raises:
        JobError: It is none of ``commands``, or the name could not be a folder's.
    """
    command, known = content.get("command"), list(commands)
    if not isinstance(command, str) or command not in known:
        close = difflib.get_close_matches(str(command), known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise JobError(f"command must be one of {', '.join(known)}, not {command!r}{hint}")
    name: str = typed("name", content.get("name", path.stem), str)
    validate_job_name(name)
    return command, name


def validate_job_name(name: str) -> None:
    """Raise if ``name`` cannot name a job and its folder.

    Raises:
        JobError: The name has other characters than letters, digits, ``_ . + -``, or is too long.
    """
    if not _NAME.fullmatch(name):
        raise JobError(f"name {name!r} is not a plain name; use letters, digits, - and _")


def num_tasks(content: Mapping[str, Any]) -> int:
    """Return into how many parts the work is to be split.

    Raises:
        JobError: No such number.
    """
    number: int = typed("tasks", content.get("tasks", 1), int)
    if not 1 <= number <= MAX_TASKS:
        raise JobError(f"tasks is {number}; it must be from 1 to {MAX_TASKS}")
    return number


def table(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a table of the file, empty where it has none.

    Raises:
        JobError: It is something else.
    """
    found = content.get(key, {})
    if not isinstance(found, dict):
        raise JobError(f"{key} must be a table, [{key}]")
    return found


def check_keys(where: str, content: Iterable[str], known: Iterable[str]) -> None:
    """Raise where there is a key that is not known, and name the nearest one that is.

    Raises:
        JobError: There is.
    """
    known = list(known)
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; it may have {', '.join(known)}"
            raise JobError(f"{where} has an unknown {key!r}{hint}")


def typed(what: str, value: Any, kind: type) -> Any:
    """Return ``value`` if it is of the type ``kind``; a whole number will do for a number.

    Raises:
        JobError: It is of another.
    """
    if type(value) is int and not -_MAX_NUMBER <= value <= _MAX_NUMBER:
        raise JobError(f"{what} is too large a number")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise JobError(f"{what} must be {_WORDS[kind]}, not {value!r}")
    if isinstance(value, str) and not value.isprintable():
        raise JobError(f"{what} must be one line of printable text, not {value!r}")
    return value
