"""Write docs/reference/: the commands, the file formats and the functions of the program.

    python tools/reference.py            # write the three documents
    python tools/reference.py --check    # exit with 1 if a document is out of date

The script reads the commands from click, and the functions from the source code. It writes small
files and lists their contents. tools/reference.toml or the docstring of a class must explain each
data set and each key. A name without an explanation is an error, and so is an explanation without a
name.
"""

import ast
import inspect
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pandas as pd

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "docs/reference"
TEXT: dict[str, Any] = tomllib.loads(
    (REPOSITORY / "tools/reference.toml").read_text(encoding="utf-8")
)
_NOTE = (
    "<!-- Made by `python tools/reference.py`: change the program or tools/reference.toml. -->\n\n"
)
# Each length is unique, so that words can replace the numbers in a shape.
_NUM, _ROWS, _COLS, _SIDE, _CAM = 7, 29, 31, 11, (13, 17)
_WORDS = {
    _NUM: "N",
    _ROWS: "rows",
    _COLS: "cols",
    _SIDE: "side",
    _CAM[0]: "h",
    _CAM[1]: "w",
    _ROWS * _CAM[0]: "rows h",
    _COLS * _CAM[1]: "cols w",
    _ROWS * _SIDE: "rows side",
    _COLS * _SIDE: "cols side",
    19: "height",
    23: "width",
    5: "patients",
    6: "slides",
}


def documents() -> dict[Path, str]:
    """Return each document of the reference and its text."""
    texts = {"commands.md": commands(), "files.md": files(), "python.md": functions()}
    return {FOLDER / name: _NOTE + text for name, text in texts.items()}


def commands() -> str:
    """Return the page of the commands: usage, help, options."""
    from wsi_idc.cli.main import group

    parts = [TEXT["commands"]["head"]]
    context = click.Context(group, info_name="wsi-idc")
    for name, command in group.commands.items():
        parts.append(f"- [`wsi-idc {name}`](#wsi-idc-{name}): {_first_line(command)}\n")
    for name, command in group.commands.items():
        parts.append(_command(command, click.Context(command, parent=context, info_name=name)))
        for inner, sub in getattr(command, "commands", {}).items():
            own = click.Context(command, parent=context, info_name=name)
            parts.append(_command(sub, click.Context(sub, parent=own, info_name=inner)))
    return "".join(parts)


def _command(command: click.Command, context: click.Context) -> str:
    depth = "###" if context.parent and context.parent.parent else "##"
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    text = [f"\n{depth} {context.command_path}\n\n    {usage}\n\n{_prose(command.help or '')}"]
    rows = [_option(one) for one in command.params if isinstance(one, click.Option)]
    if rows:
        text.append("\n| option | |\n|---|---|\n" + "".join(f"| {a} | {b} |\n" for a, b in rows))
    return "".join(text)


def _first_line(command: click.Command) -> str:
    return (command.help or "").strip().split("\n\n")[0].replace("\n", " ")


def _prose(text: str) -> str:
    """Convert a help text to Markdown; paragraphs that click does not wrap become code blocks."""
    parts = []
    for part in re.split(r"\n\s*\n", text.strip()):
        if not part.lstrip().startswith("\b"):
            parts.append(_plain(" ".join(part.split())))
            continue
        lines = [line for line in part.splitlines() if line.strip("\b ")]
        if lines[0].strip().rstrip(":") in ("Example", "Examples"):
            parts.append(lines.pop(0).strip())
        parts.append("\n".join(f"    {line.strip()}" for line in lines))
    return "\n\n".join(parts) + "\n"


def _option(option: click.Option) -> tuple[str, str]:
    """Return the names and help text of an option, without machine-dependent values."""
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    help_text = re.sub(r"\s*\[default: (.*)\]$", r" Default: \1.", option.help or "").strip()
    kind, parts = option.type, [_plain(help_text)]
    if isinstance(kind, click.Choice):
        parts.append("One of " + ", ".join(f"`{one}`" for one in kind.choices) + ".")
    elif isinstance(kind, click.IntRange | click.FloatRange) and not option.count:
        parts.append(_range(kind))
    default = option.default
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    if (
        option.show_default
        and not option.is_flag
        and isinstance(default, str | int | float | Path)
        and str(default)
    ):
        parts.append(f"Default: `{default}`.")
    takes = "" if option.is_flag or option.count else f" {(option.metavar or kind.name).upper()}"
    return names + takes.replace("CHOICE", "").replace(" RANGE", "").rstrip(), " ".join(
        filter(None, parts)
    )


def _range(kind: Any) -> str:
    low, high = kind.min, kind.max
    if low is None and high is None:
        return ""
    if high is None:
        return f"More than {low}." if kind.min_open else f"At least {low}."
    return f"From {low} to {high}."


def files() -> str:
    """Build the page of the files: write a small file of each kind and list its contents."""
    with tempfile.TemporaryDirectory() as name:
        return "".join(_files(Path(name)))


def _files(folder: Path) -> Iterator[str]:
    from wsi_idc.data.artifacts import FLAGS
    from wsi_idc.data.pack import PackInfo
    from wsi_idc.data.packed_slides import PackedSlide
    from wsi_idc.data.slide_cutter import COLUMNS
    from wsi_idc.maps.cohort import Cohort, summarize
    from wsi_idc.maps.map_reader import read_map
    from wsi_idc.maps.map_writer import write_map
    from wsi_idc.maps.patient_file import write_patient_file
    from wsi_idc.maps.patient_map import PatientMap, PatientPatches
    from wsi_idc.models.checkpoint import Checkpoint, InputSpec
    from wsi_idc.models.encoder_source import EncoderSource
    from wsi_idc.models.smoothing import NeighborModel, Smoothing

    text = TEXT["files"]
    yield text["head"]
    yield text["pack_head"]
    _write_pack(folder / "p.h5")
    yield from _hdf5(folder / "p.h5", {**_fields(PackInfo), **text["pack"]})
    yield text["slide_pack_head"]
    _write_pack(folder / "s.h5", of_slides=True)
    of_tree = _walk(folder / "p.h5")
    found = {name: cells for name, cells in _walk(folder / "s.h5").items() if name not in of_tree}
    yield "| data set | type | shape | |\n|---|---|---|---|\n"
    yield from _rows(found, {**_fields(PackedSlide, "/slides/"), **text["slide_pack"]})
    yield text["slide_table_head"]
    yield "| column | |\n|---|---|\n"
    yield from _rows(dict.fromkeys(COLUMNS, ()), text["slide_table"])
    optional = ("cam", "uncertainty", "unsmoothed", "unsmoothed_threshold", "smoothing", "flags")
    optional += ("novelty", "novelty_limit")
    full, bare = _map(), {**dict.fromkeys(optional), "exclude_flagged": False}
    write_map(folder / "full.h5", replace(full, slide_name="s"))
    write_map(folder / "bare.h5", replace(full, slide=None, patches=None, **bare))
    always = set(_walk(folder / "bare.h5"))
    yield text["map_head"]
    meanings = {**_fields(PatientPatches), **_fields(PatientMap), **text["map"]}
    yield from _hdf5(folder / "full.h5", meanings, always=always)
    cohort = Cohort()
    cohort.add(folder / "full.h5", summarize(read_map(folder / "full.h5")))
    table, (_, hdf5, _) = cohort.table(), cohort.write(folder)
    yield text["patient_head"]
    write_map(folder / "P1" / "s.h5", replace(full, slide_name="s"))
    write_patient_file(folder / "P1.h5")
    found = {name.removeprefix("/@"): cells for name, cells in _walk(folder / "P1.h5").items()}
    kinds = {name: cells for name, cells in found.items() if name in text["patient_file"]}
    yield from _rows(kinds, text["patient_file"])
    yield text["cohort_head"]
    yield "| column | type | |\n|---|---|---|\n"
    meanings = {f"flagged_{name}": f"Number of patches with the flag {name}." for name in FLAGS}
    meanings |= text["cohort"]
    yield from _rows({str(k): (_kind(v),) for k, v in table.dtypes.items()}, meanings)
    yield "\n" + text["cohort_h5"]
    with h5py.File(hdf5) as file:
        assert set(file["table"]) == set(table.columns), "cohort.h5 has other columns"
        assert set(file) == {"table", "maps"}, "cohort.h5 has other groups"
    dtypes = {str(name): (_kind(dtype),) for name, dtype in cohort.patients().dtypes.items()}
    kinds = {name: dtypes[name] for name in text["patients"]}
    yield from _rows(kinds, text["patients"])
    yield text["checkpoint_head"]
    yield "| key | type | |\n|---|---|---|\n"
    content = _checkpoint(folder / "c.pt")
    kinds = {name: (_type_of(value),) for name, value in content.items()}
    meanings = {**_fields(Checkpoint), **_fields(InputSpec, "input."), **text["checkpoint"]}
    meanings |= {**_fields(Smoothing, "smoothing."), **_fields(NeighborModel, "neighbors.")}
    meanings |= _fields(EncoderSource, "encoder.")
    for group in ("input", "smoothing", "neighbors", "encoder"):
        kinds |= {f"{group}.{k}": (_type_of(v),) for k, v in content[group].items()}
    yield from _rows(kinds, meanings, spare=("source", "fingerprint"))
    yield text["run"]


def _write_pack(path: Path, *, of_slides: bool = False) -> None:
    from wsi_idc.data.pack import PackInfo, write_pack
    from wsi_idc.data.packed_slides import Overview, PackedSlide
    from wsi_idc.geometry.bounds import Bounds

    info = PackInfo((0.5,) * 3, (0.2,) * 3, _SIDE, 4.0, "assumed", "ab")  # type: ignore[arg-type]
    rows = {"x": np.arange(_NUM) * _SIDE, "y": 0, "label": 0, "height": _SIDE, "width": _SIDE}
    patients = ["A", "A", "A", "B", "C", "D", "E"]
    index = pd.DataFrame({"path": "", "patient": patients, "slide": [0, 0, 1, 2, 3, 4, 5], **rows})
    pixels = [np.zeros((_NUM, _SIDE, _SIDE, 3), np.uint8)]
    view = Overview(np.zeros((19, 23, 3), np.uint8), np.ones((19, 23), bool))
    slide = PackedSlide("s", "s.svs", 1.0, "file", 900, 900, Bounds(1, 1, 700, 700), "ab")
    slides = [slide] * 6 if of_slides else []
    options: dict[str, Any] = {"slides": slides, "overviews": [view]}
    write_pack(path, index, pixels, info=info, provenance="{}", **options)


def _map() -> Any:
    """Build a map with every optional part."""
    from wsi_idc.data.artifacts import FLAGS
    from wsi_idc.geometry.bounds import Bounds
    from wsi_idc.maps.patient_map import PatientMap, SlideView

    row_col = np.array([[_ROWS - 1, _COLS - 1], *[[0, col] for col in range(_NUM - 1)]], np.int32)
    one = np.full(_NUM, 0.5, np.float32)
    view = SlideView(
        "s.svs",
        1.0,
        900,
        900,
        np.zeros((19, 23, 3), np.uint8),
        np.ones((19, 23), bool),
        bounds=Bounds(100, 100, 700, 700),
    )
    return PatientMap(
        patient="P1",
        source="slide",
        class_names=("non-IDC", "IDC"),
        patch_px=_SIDE,
        mpp=4.0,
        mpp_source="model",
        threshold=0.5,
        temperature=1.0,
        model={},
        provenance={},
        coords=row_col[:, ::-1] * _SIDE,
        row_col=row_col,
        logit=np.zeros((_NUM, 2), np.float32),
        probability=one,
        label=np.zeros(_NUM, np.int8),
        cam=np.zeros((_NUM, *_CAM), np.float32),
        cam_layer="features",
        uncertainty=one,
        novelty=one,
        novelty_limit=0.8,
        flags=np.zeros(_NUM, np.uint8),
        flag_bits=dict(FLAGS),
        exclude_flagged=True,
        unsmoothed=one,
        unsmoothed_threshold=0.5,
        smoothing={"sigma_um": 1.0, "temperature": 1.0, "threshold": 0.5},
        slide=view,
        patches=np.zeros((_NUM, _SIDE, _SIDE, 3), np.uint8),
    )


def _checkpoint(path: Path) -> dict[str, Any]:
    import torch

    from wsi_idc.models.checkpoint import (
        FORMAT,
        Checkpoint,
        InputSpec,
        read_state,
        save_checkpoint,
    )
    from wsi_idc.models.encoder_source import EncoderSource
    from wsi_idc.models.novelty import NoveltyModel
    from wsi_idc.models.smoothing import NeighborModel, Smoothing

    spec = InputSpec(_SIDE, 4.0, None, (0.5,) * 3, (0.2,) * 3)
    names, smoothing = ("non-IDC", "IDC"), Smoothing(1.0, 1.0, 0.5)
    plain: dict[str, Any] = {"split": {}, "metrics": {}, "provenance": {}, "config": {}}
    save_checkpoint(
        path,
        Checkpoint(
            *("cnn", {}, spec, names, "features", 1.0, 0.5),
            **plain,
            split_spec="auto",
            smoothing=smoothing,
            neighbors=NeighborModel((0.0,) * 6, 0.0, 0.5, 200.0),
            novelty=NoveltyModel("features", *(torch.zeros(2),) * 3, 0.5, 0.1),
            encoder=EncoderSource("imagenet", "ab", "mit"),
        ),
    )
    return read_state(path, kind=FORMAT)[0]


def _walk(path: Path) -> dict[str, tuple[str, str]]:
    """Return type and shape of the data sets (/name) and attributes (@name) of an HDF5 file."""
    found: dict[str, tuple[str, str]] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found[f"/{name}"] = (_kind(node.dtype), _shape(node.shape))
        attributes(f"/{name}", node)

    def attributes(where: str, node: Any) -> None:
        for name, value in node.attrs.items():
            value = np.asarray(value)
            found[f"{where}@{name}"] = (_kind(value.dtype), _shape(value.shape))

    with h5py.File(path) as file:
        file.visititems(visit)
        attributes("/", file)
    return found


def _hdf5(
    path: Path, meanings: Mapping[str, str], *, always: set[str] | None = None
) -> Iterator[str]:
    found = _walk(path)
    kept = {k: v for k, v in found.items() if not k.endswith(tuple(TEXT["files"]["unlisted"]))}
    sets = {k: v for k, v in kept.items() if "@" not in k}
    of_root_first = sorted((k for k in kept if "@" in k), key=lambda k: not k.startswith("/@"))
    attributes = {k.removeprefix("/@").removeprefix("/"): kept[k] for k in of_root_first}
    optional = {k.removeprefix("/@").removeprefix("/") for k in kept if always and k not in always}
    optional |= {k for k in sets if always and k not in always}
    used: set[str] = set()
    yield "| data set | type | shape | |\n|---|---|---|---|\n"
    yield from _rows(sets, meanings, optional=optional, used=used)
    yield "\n| attribute | type | shape | |\n|---|---|---|---|\n"
    yield from _rows(attributes, meanings, optional=optional, used=used)
    spare = set(TEXT["files"]["fields_elsewhere"])
    if left := set(meanings) - used - spare:
        raise SystemExit(f"{path.name}: explanations without a name: {', '.join(sorted(left))}")


def _rows(
    found: Mapping[str, tuple[str, ...]],
    meanings: Mapping[str, str],
    *,
    spare: tuple[str, ...] = (),
    optional: set[str] | None = None,
    used: set[str] | None = None,
) -> Iterator[str]:
    """Yield one row for each name, with its explanation."""
    for name, cells in found.items():
        if name not in meanings:
            raise SystemExit(f"{name} has no explanation; add one to tools/reference.toml")
        note = "*Optional.* " if optional and name in optional else ""
        yield f"| {' | '.join((f'`{name}`', *cells, note + _plain(meanings[name])))} |\n"
    if used is not None:
        used |= set(found)
    elif left := set(meanings) - set(found) - set(spare):
        raise SystemExit(f"explanations without a name: {', '.join(sorted(left))}")


def _kind(dtype: Any) -> str:
    return "text" if getattr(dtype, "kind", "O") in "OUST" else str(dtype)


def _type_of(value: Any) -> str:
    return "int or None" if value is None else type(value).__name__


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(_WORDS.get(one, str(one)) for one in shape)})" if shape else ""


def _fields(kind: type, before: str = "") -> dict[str, str]:
    """Parse the attributes in a class's docstring; return the text of each."""
    # Python 3.13 removes the indentation of a docstring, older versions keep it.
    _, _, text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")
    found = re.findall(r"^    (\w[\w, ]*): (.+(?:\n        .+)*)", text, re.MULTILINE)
    return {
        before + name: " ".join(text.split()) for names, text in found for name in names.split(", ")
    }


def functions() -> str:
    """Build the page of the functions and classes for scripts, from the source."""
    parts = [TEXT["python"]["head"]]
    for module in TEXT["python"]["modules"]:
        tree = ast.parse((REPOSITORY / module.replace(".", "/")).with_suffix(".py").read_text())
        parts.append(f"\n## {module}\n\n{ast.get_docstring(tree, clean=True)}\n\n")
        for node in tree.body:
            is_public = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if is_public and not node.name.startswith("_"):
                summary = (ast.get_docstring(node) or "").split("\n\n")[0]
                summary = f"{_plain(' '.join(summary.split()))}{_fields_of(node)}"
                parts.append(f"- `{_signature(node)}`: {summary}\n")
    return "".join(parts)


def _signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        return node.name
    returns = f" -> {ast.unparse(node.returns).strip(chr(39))}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returns}"


def _fields_of(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return a sentence with the names of a dataclass's fields."""
    if isinstance(node, ast.FunctionDef):
        return ""
    names = [one.target.id for one in node.body if isinstance(one, ast.AnnAssign)]  # type: ignore[union-attr]
    public = [f"`{name}`" for name in names if not name.startswith("_")]
    return f" Fields: {', '.join(public)}." if public else ""


def _plain(text: str) -> str:
    """Escape text for Markdown and for Markdown tables."""
    text = text.replace("``", "`").replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"(?<=\w)\*(?=\w)| \* ", lambda found: found[0].replace("*", "\\*"), text)


def main(arguments: list[str]) -> int:
    """Write the documents; with ``--check``, only list the documents that are out of date."""
    stale = [
        path
        for path, text in documents().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in arguments:
        for path in stale:
            sys.stderr.write(f"{path} is out of date; run python tools/reference.py\n")
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
