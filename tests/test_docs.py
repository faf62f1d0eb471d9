"""The documents say what the program does: commands, links, messages, examples."""

import ast
import configparser
import contextlib
import importlib.util
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import matplotlib.pyplot as plt
import pytest

from tests.packs import Cell, make_pack
from tests.small_maps import small_map
from tests.small_slides import write_slide
from wsi_idc.cli.main import group, run
from wsi_idc.maps.map_writer import write_map

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").rglob("*.md")]
)
# A message must have so much of its own that no other fits by chance.
_FIXED_CHARACTERS = 10


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", REPOSITORY / "tools/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_program_says():
    for path, text in _tool().documents().items():
        assert path.read_text() == text, f"{_name(path)}: run python tools/reference.py"


def test_every_command_is_in_the_readme_and_has_a_link():
    rows = re.findall(
        r"^\| \[`wsi-idc ([\w-]+)`\]\(docs/reference/commands\.md#wsi-idc-([\w-]+)\) \|",
        (REPOSITORY / "README.md").read_text(),
        re.MULTILINE,
    )
    assert [first for first, _ in rows] == [second for _, second in rows]
    assert sorted(first for first, _ in rows) == sorted(group.commands)


def test_every_variable_of_the_environment_is_in_the_reference():
    sources = [*(REPOSITORY / "wsi_idc").rglob("*.py"), *(REPOSITORY / "slurm").iterdir()]
    found = {
        name for path in sources for name in re.findall(r"\bWSI_IDC_[A-Z_]+", path.read_text())
    }
    text = (REPOSITORY / "docs/reference/commands.md").read_text()
    assert {name for name in found if f"`{name}`" not in text} == set()


def test_every_dependency_has_its_reason():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    wanted = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    names = {re.split(r"[<>=!~\[ ]", line)[0] for part in wanted for line in part.split("\n")}
    text = (REPOSITORY / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2]
    cells = re.findall(r"^\| (.*?)(?: \((?:dev|notebooks|release)\))? \|", text, re.MULTILINE)
    listed = {name for cell in cells for name in cell.split(", ")}
    assert names - {""} == listed - {"package", "---"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_link_leads_somewhere(document: Path):
    text = _without_code(document.read_text())
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (document.parent / place).resolve() if place else document
        assert target.exists(), link
        assert target.is_relative_to(REPOSITORY), link
        if anchor:
            assert anchor in _anchors(target.read_text()), link


def _without_code(text: str) -> str:
    """Return a text without its blocks of code; what is `so` within a line stays."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4,}.*$", "", text, flags=re.MULTILINE)


def _anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", _without_code(text), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[anchor] = found.get(anchor, -1) + 1
    return {f"{name}-{n}" if n else name for name, last in found.items() for n in range(last + 1)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_files_of_the_project_that_are_named_are_there(document: Path):
    # Not the end of a longer path, such as one on a user's disk.
    folders, suffixes = r"examples|jobs|slurm|tools|tests|docs|\.ci", "toml|sh|py|md|csv"
    pattern = rf"(?<![\w/.])(?:{folders})/[\w./-]+\.(?:{suffixes})\b"
    for name in re.findall(pattern, document.read_text()):
        assert (REPOSITORY / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_command_line_can_be_given(document: Path):
    text = document.read_text()
    for words in _blocks(text):
        _parse(words)
    for line in re.findall(r"(?<!`)`(wsi-idc [^`]+)`(?!`)", text):
        for words in _calls(" ".join(line.split())):
            # Without its arguments it is named, and not meant to be typed.
            with contextlib.suppress(click.MissingParameter):
                _parse(words)


def _blocks(text: str) -> Iterator[list[str]]:
    """Yield the calls of the program in blocks of code."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("    ") and "wsi-idc" in line and "[OPTIONS]" not in line:
            yield from _calls(line)


def _calls(line: str) -> Iterator[list[str]]:
    """Yield what stands behind each ``wsi-idc`` of a line of the shell."""
    for part in re.split(r"&&|;", line):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:  # prose, with an apostrophe in it
            continue
        for place, word in enumerate(words):
            if word.rpartition("/")[2] == "wsi-idc":
                end = words.index(">") if ">" in words else len(words)
                yield ["0" if "$" in one else one for one in words[place + 1 : end]]


def _parse(words: list[str]) -> None:
    """Let click read the words, and run nothing."""
    if words and words[0].startswith("-"):
        return
    command: click.Command = group
    while isinstance(command, click.Group) and words:
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    if isinstance(command, click.Group):
        return
    with command.make_context(command.name, list(words)):
        pass


def test_a_wrong_line_would_be_found():
    with pytest.raises(click.NoSuchOption):
        _parse(["map", "--pateint", "10253"])
    with pytest.raises(AssertionError):
        _parse(["mapp"])
    assert list(_blocks("    cd x && wsi-idc train --epochs 3  # three\n")) == [
        ["train", "--epochs", "3"]
    ]


def test_troubleshooting_is_headed_by_what_the_program_says():
    headings = _messages_explained()
    assert len(headings) >= 25
    patterns = _messages_of_the_code("\n".join(headings))
    unknown = [one for one in headings if not any(p.fullmatch(one) for p in patterns)]
    assert unknown == []


def _messages_explained() -> list[str]:
    text = (REPOSITORY / "docs/troubleshooting.md").read_text()
    return re.findall(r"^### `(.+)`$", text, re.MULTILINE)


def _messages_of_the_code(explained: str) -> list[re.Pattern[str]]:
    """Return a pattern for every text in the package, with anything where a value comes in.

    Only of those whose fixed parts all occur in ``explained``: patterns are slow.
    """
    found = []
    for path in (REPOSITORY / "wsi_idc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr | ast.Constant):
                parts = _parts(node)
                # Backticks cannot stand in a heading that is code.
                fixed = [part.replace("`", "") for part in parts if part is not None]
                is_said = all(part in explained for part in fixed)
                if is_said and sum(map(len, fixed)) >= _FIXED_CHARACTERS:
                    pattern = "".join(".+" if p is None else re.escape(p) for p in parts)
                    found.append(re.compile(pattern.replace("`", "")))
    return found


def _parts(node: ast.expr) -> list[str | None]:
    """Return the fixed parts of a text, None for each value between them."""
    if isinstance(node, ast.JoinedStr):
        return [part for value in node.values for part in _parts(value)]
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        return [None]
    fixed = re.split(r"%[sdgr]", node.value)
    return [part for one in fixed for part in (one, None)][:-1]


def _examples() -> list[tuple[str, str]]:
    return [
        (f"{_name(path)}-{number}", code)
        for path in DOCUMENTS
        for number, code in enumerate(
            re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
        )
    ]


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in _examples()])
def test_the_examples_in_python_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "maps").mkdir()
    write_map(tmp_path / "maps/10253.h5", small_map(patient="10253"))
    if "scan.tif" in code:
        write_slide(tmp_path / "scan.tif", {(0, 0): 1}, rows=1, cols=1)
    if "data/idc.h5" in code:
        (tmp_path / "data").mkdir()
        make_pack(tmp_path / "data/idc.h5", [Cell("1", 0, 0, 0), Cell("1", 0, 1, 1)])
    for package in ("anndata", "spatialdata"):
        if f"to_{package}()" in code:
            pytest.importorskip(package, reason=f"{package} is not installed")
            warnings.simplefilter("default")  # of other packages
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "example", "exec"), names)
    plt.close("all")
    if "called" in names:
        assert names["called"].sum() == 2  # type: ignore[attr-defined]
        assert names["mm2"] == pytest.approx(0.04**2)


def test_the_readmes_way_from_a_tree_to_a_report(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Run the lines of the README that need no training, as they stand."""
    monkeypatch.chdir(tmp_path)
    tree.rename(tmp_path / "TREE")
    section = (REPOSITORY / "README.md").read_text().partition("## Train on the Kaggle set or")[2]
    lines = list(_blocks(section.partition("\n## ")[0]))
    quick = [words for words in lines if words[0] in ("prepare", "map", "report", "render")]
    quick.remove(["prepare", "ARCHIVE.zip"])
    assert [words[0] for words in quick] == ["prepare", "map", "report", "render"]
    for words in quick:
        assert run(lambda w=words: group.main(w, prog_name="wsi-idc", standalone_mode=False)) == 0
    made = sorted(path.stem for path in (tmp_path / "maps").glob("*.png"))
    assert len(made) == 3
    for name in ("data/idc.h5", "data/rejected.csv", "data/flagged.csv", "maps/cohort.csv"):
        assert (tmp_path / name).exists(), name
    assert (tmp_path / "report/index.html").exists()
    assert {path.stem for path in (tmp_path / "maps").glob("*.h5")} == {"cohort", *made}
