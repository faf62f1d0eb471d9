"""Option ``--config``: read defaults for the options of a command from a TOML file.

A key of the file is the name of an option, as in job files. The table ``[train]`` applies only to
``wsi-idc train``; keys before the first table apply to every command that has the option. The
command line has priority over the file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wsi_idc.core.errors import JobError
from wsi_idc.core.text import join_items
from wsi_idc.core.toml_file import check_keys, load_toml

_META = f"{__name__}.path"
_NOT_IN_A_FILE = ("config", "help")


def option_key(param: click.Parameter) -> str:
    """Return the key of an option in a TOML file, such as "learning_rate"."""
    return max(param.opts, key=len).lstrip("-").replace("-", "_")


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Set the defaults of the options of ``ctx`` to the values in the file ``path``."""
    if path is None:
        return
    if ctx.parent is None:  # wsi-idc job runs this command
        raise click.UsageError("the job file sets the options; leave out --config.")
    content = load_toml(path, remedy="give a TOML file with options")
    try:
        values = _own_values(ctx, content)
        ctx.default_map = {name: _checked(ctx, *value) for name, value in values.items()}
    except (JobError, click.BadParameter) as error:
        text = error.message if isinstance(error, click.BadParameter) else error
        raise JobError(f"{path}: {text}") from None
    ctx.meta[_META] = path


def _own_values(
    ctx: click.Context, content: Mapping[str, Any]
) -> dict[str, tuple[click.Option, str, Any]]:
    """Return option, key and value of each key for the command of ``ctx``, by parameter name."""
    if "command" in content:
        raise JobError("this is a job file; run it with wsi-idc job, or remove the key command")
    assert ctx.parent is not None
    name, options = str(ctx.command.name), _options(ctx.command)
    commands = ctx.parent.command.commands  # type: ignore[attr-defined]
    tables = [key for key, value in content.items() if isinstance(value, dict)]
    check_keys("the file", tables, commands)
    if name in content and name not in tables:
        raise JobError(f"{name} must be a table: write [{name}]")
    common = _with_underscores({key: content[key] for key in content if key not in tables})
    own = _with_underscores(content.get(name, {}))
    # A file with tables is for several commands, and not every command has every option.
    others = [key for command in commands.values() for key in _options(command)] if tables else []
    check_keys("the file", common, [*options, *others])
    check_keys(f"[{name}]", own, options)
    values = {key: value for key, value in {**common, **own}.items() if key in options}
    return {str(options[key].name): (options[key], key, value) for key, value in values.items()}


def _with_underscores(content: Mapping[str, Any]) -> dict[str, Any]:
    """Replace "-" by "_" in the keys; raise JobError if two keys are then the same."""
    spelling: dict[str, str] = {}
    for key in content:
        first = spelling.setdefault(key.replace("-", "_"), key)
        if first != key:
            raise JobError(f"{first} and {key} are the same option; leave out one of them")
    return {key: content[first] for key, first in spelling.items()}


def _options(command: click.Command) -> dict[str, click.Option]:
    """Return the options of a command that a file may set, by key."""
    return {
        option_key(param): param
        for param in command.params
        if isinstance(param, click.Option) and param.name not in _NOT_IN_A_FILE
    }


def _checked(ctx: click.Context, option: click.Option, key: str, value: Any) -> Any:
    """Return ``value`` in the form of the command line; raise an error if its type is wrong."""
    items = value if isinstance(value, list) and option.multiple else [value]
    for item in items:
        if option.is_flag != isinstance(item, bool) or not isinstance(item, str | int | float):
            kind = "true or false" if option.is_flag else "a number or a text"
            raise JobError(f"{key} must be {kind}, not {item!r}")
        if isinstance(item, str) and not item.isprintable():
            raise JobError(f"{key} must be one line of printable text, not {item!r}")
    # Click converts numbers without an error, for example 3.5 to 3; it checks a text.
    texts = [item if option.is_flag else str(item) for item in items]
    text = texts if option.multiple else texts[0]
    try:
        option.type_cast_value(ctx, text)
    except click.BadParameter as error:
        raise JobError(f"{key}: {error.message}") from None
    return text


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="TOML file with options of this command, as epochs = 3, or in a table such as [train]. "
    "The command line has priority.",
)


def source_text(ctx: click.Context, name: str) -> str:
    """Return the source of the value of a parameter.

    The source is "command line" or the path of the file of ``--config``; "" for a default of the
    program, and in a job, whose file sets all options.
    """
    if ctx.parent is None:
        return ""
    source = ctx.get_parameter_source(name)
    if source is ParameterSource.DEFAULT_MAP:
        return str(ctx.meta[_META])
    return "command line" if source is ParameterSource.COMMANDLINE else ""


def config_lines(ctx: click.Context) -> Iterator[str]:
    """Yield a message with the options that the file of ``--config`` sets, if there is a file."""
    if (path := ctx.meta.get(_META)) is None:
        return
    keys = {str(param.name): option_key(param) for param in ctx.command.params}
    names = ctx.default_map or {}
    used = [name for name in names if source_text(ctx, name) == str(path)]
    if used:
        first, *others = (f"{keys[name]} {_shown(names[name])}" for name in used)
        yield join_items([f"options from {path}: {first}", *others])
    if replaced := [keys[name] for name in names if name not in used]:
        yield f"the command line replaces options of {path}: {', '.join(replaced)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(value) if isinstance(value, list) else str(value)
