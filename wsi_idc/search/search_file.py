"""Read the job file of a search: the settings that all trials share, the axes, the sampler."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from wsi_idc.core.errors import JobError
from wsi_idc.core.toml_file import check_keys, command_and_name, load, table, typed
from wsi_idc.search.config import Axis, SearchSpec, Span
from wsi_idc.training.config import TrainConfig

SEARCH = "search"


def read_search(path: Path) -> SearchSpec:
    """Read and check the job file of a search; all that it leads to is checked here.

    Raises:
        JobError: It cannot be read, is of another command, or asks for something that makes no
            sense.
    """
    content = load(path)
    if content.get("command") != SEARCH:
        raise JobError(f'{path}: no search; give a file with command = "search"')
    try:
        return search_spec(command_and_name(content, path, [SEARCH])[1], content)
    except JobError as error:
        raise JobError(f"{path}: {error}") from None


def search_spec(name: str, content: Mapping[str, Any]) -> SearchSpec:
    """Return the search that a job file's content asks for.

    Raises:
        JobError: It makes no sense.
    """
    check_keys("the file", content, ["command", "name", "tasks", "config", "search", "axes"])
    options = table(content, "search")
    types = {"sampler": str, "trials": int, "seed": int, "prune": bool, "metric": str}
    check_keys("[search]", options, types)
    options = {key: typed(key, value, types[key]) for key, value in options.items()}
    if "trials" in options and options.get("sampler", "grid") == "grid":
        raise JobError("trials is for sampler random or tpe; a grid runs all of its points")
    kinds = train_types()
    fixed = table(content, "config")
    check_keys("[config]", fixed, kinds)
    return SearchSpec(
        name=name,
        fixed={key: typed(key, value, kinds[key]) for key, value in fixed.items()},
        axes=_axes(table(content, "axes")),
        **options,
    )


def train_types() -> dict[str, type]:
    """Return the type of each setting of a training."""
    return {option.name: type(option.default) for option in fields(TrainConfig)}


def _axes(found: Mapping[str, Any]) -> dict[str, Axis]:
    types = train_types()
    check_keys("[axes]", found, types)
    return {name: _axis(name, value, types[name]) for name, value in found.items()}


def _axis(name: str, value: Any, kind: type) -> Axis:
    if isinstance(value, list):
        return tuple(typed(f"axis {name}", item, kind) for item in value)
    if not isinstance(value, dict) or kind not in (int, float):
        ranges = " or a range, {low = 1, high = 2}" if kind in (int, float) else ""
        raise JobError(f"axis {name} must be a list{ranges}, not {value!r}")
    ends = {"low": kind, "high": kind, "log": bool, "step": kind}
    check_keys(f"axis {name}", value, ends)
    for end in ("low", "high"):
        if end not in value:
            raise JobError(f"axis {name} lacks {end}")
    return Span(**{key: typed(f"axis {name}: {key}", it, ends[key]) for key, it in value.items()})
