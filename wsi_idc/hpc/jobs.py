"""Read a job file: a TOML that says what to compute, and never where.

``command`` is the name of a command and ``name`` (the file's stem by default) that of the job; the
tables are the command's own. ``[config]`` has the flags of ``wsi-idc train``, spelled with
underscores.
"""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wsi_idc.config import TrainConfig
from wsi_idc.errors import JobError, RunError
from wsi_idc.learn.space import Axis, SearchSpec, Span, check_name

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Job:
    """What a job file asks for.

    Attributes:
        command: "train" or "search".
        name: Of the job.
        settings: The command's settings.
    """

    command: str
    name: str
    settings: TrainConfig | SearchSpec


def read_job(path: Path) -> Job:
    """Read and check a job file; all that it leads to is checked here, ahead of the first step.

    Raises:
        JobError: It cannot be read, or asks for something that makes no sense.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"{path}: {error.strerror}; give a job file") from None
    except ValueError as error:  # what TOMLDecodeError and UnicodeDecodeError have in common
        raise JobError(f"{path}: not a readable TOML file ({error})") from None
    try:
        command = content.pop("command", None)
        if not isinstance(command, str) or command not in _READERS:
            raise JobError(f"command must be one of {', '.join(_READERS)}, not {command!r}")
        name = _typed("name", content.pop("name", path.stem), str)
        check_name(name)
        return Job(command, name, _READERS[command](name, content))
    except JobError as error:
        raise JobError(f"{path}: {error}") from None


def _read_train(name: str, content: Mapping[str, Any]) -> TrainConfig:
    _check_keys("the file", content, ["config"])
    try:
        return TrainConfig(**_settings("config", _table(content, "config")))
    except RunError as error:
        raise JobError(str(error)) from None


def _read_search(name: str, content: Mapping[str, Any]) -> SearchSpec:
    _check_keys("the file", content, ["config", "search", "axes"])
    options = _table(content, "search")
    types = {"sampler": str, "trials": int, "seed": int, "prune": bool, "metric": str}
    _check_keys("[search]", options, types)
    options = {key: _typed(key, value, types[key]) for key, value in options.items()}
    if "trials" in options and options.get("sampler", "grid") == "grid":
        raise JobError("trials is for sampler random or tpe; a grid runs all of its points")
    return SearchSpec(
        name=name,
        fixed=_settings("config", _table(content, "config")),
        axes=_axes(_table(content, "axes")),
        **options,
    )


_READERS: dict[str, Callable[[str, Mapping[str, Any]], TrainConfig | SearchSpec]] = {
    "train": _read_train,
    "search": _read_search,
}


def _table(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = content.get(key, {})
    if not isinstance(table, dict):
        raise JobError(f"{key} must be a table, [{key}]")
    return table


def _check_keys(where: str, content: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; it may have {', '.join(known)}"
            raise JobError(f"{where} has an unknown {key!r}{hint}")


def _settings(where: str, table: Mapping[str, Any]) -> dict[str, Any]:
    types = _types()
    _check_keys(f"[{where}]", table, types)
    return {name: _typed(name, value, types[name]) for name, value in table.items()}


def _types() -> dict[str, type]:
    return {option.name: type(option.default) for option in fields(TrainConfig)}


def _axes(table: Mapping[str, Any]) -> dict[str, Axis]:
    types = _types()
    _check_keys("[axes]", table, types)
    return {name: _axis(name, value, types[name]) for name, value in table.items()}


def _axis(name: str, value: Any, kind: type) -> Axis:
    if isinstance(value, list):
        return tuple(_typed(f"axis {name}", item, kind) for item in value)
    if not isinstance(value, dict) or kind not in (int, float):
        ranges = " or a range, {low = 1, high = 2}" if kind in (int, float) else ""
        raise JobError(f"axis {name} must be a list{ranges}, not {value!r}")
    ends = {"low": kind, "high": kind, "log": bool, "step": kind}
    _check_keys(f"axis {name}", value, ends)
    for end in ("low", "high"):
        if end not in value:
            raise JobError(f"axis {name} lacks {end}")
    return Span(**{key: _typed(f"axis {name}: {key}", it, ends[key]) for key, it in value.items()})


def _typed(what: str, value: Any, kind: type) -> Any:
    """Return ``value`` if it is of the type ``kind``; a whole number will do for a number."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise JobError(f"{what} must be {_WORDS[kind]}, not {value!r}")
    return value
