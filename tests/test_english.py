"""Docstrings, comments, messages and documents avoid a list of words."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = sorted((REPOSITORY / "wsi_idc").rglob("*.py"))
SOURCES = [*PACKAGE, *sorted((REPOSITORY / "tools").rglob("*.py"))]
TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "jobs/*.toml",
        "slurm/*",
        "examples/*",
        "wsi_idc/**/*.html",
    )
    for path in REPOSITORY.glob(pattern)
    if path.name != "CHANGELOG.md"
)
# Each has a plain replacement: anew -> again, is none -> is not one, lies and stands -> is,
# told -> given, says -> reports, due -> because, alone -> only, whole -> complete.
WORDS = re.compile(
    r"\b(anew|gone on with|go(es)? on|went on|(is|are) none|knows? no|lies|stands|to be had"
    r"|ahead of|what(so)?ever|whoever|nobody|lends?|lent|told|tells?|says?|said|due|alone"
    r"|judged?|judges|comes? of|came of|come by|at one go|as it (is|was)|of it)\b"
    r"|\bwhole(?![ -]slide)",
    re.IGNORECASE,
)
STARTS = re.compile(
    r"(What|Let|Lend|Say|Tell|Do as|How|Whether|Where|Who|Of|Not|Nothing|Nobody"
    r"|Return (what|how|where|who|whom|that which)|Raise where)\b"
)
FRAGMENT = re.compile(r"\w+: Of (the|a|an|each|what|which|it|how|all)\b")


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def _docstrings(text: str) -> Iterator[str]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, kinds) and (docstring := ast.get_docstring(node)):
            yield docstring


def _sentences(text: str) -> Iterator[str]:
    """Yield the lines of comments and of strings that have more than one word."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or "FSTRING" in str(
            tokenize.tok_name[token.type]
        ):
            yield from (line.strip() for line in token.string.splitlines() if " " in line.strip())


def _offences(lines: Iterator[str]) -> list[str]:
    return [line for line in lines if WORDS.search(re.sub(r"`+[^`]*`+", "", line))]


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_docstrings_begin_plainly_and_attributes_are_sentences(path: Path):
    text = path.read_text()
    assert [one for one in _docstrings(text) if STARTS.match(one)] == []
    lines = [line.strip() for one in _docstrings(text) for line in one.splitlines()]
    assert [line for line in lines if FRAGMENT.match(line)] == []


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_comments_docstrings_and_messages_use_plain_words(path: Path):
    assert _offences(_sentences(path.read_text())) == []


@pytest.mark.parametrize("path", TEXTS, ids=_name)
def test_documents_use_plain_words(path: Path):
    code = r"^```.*?^```|\{\{.*?\}\}|\{%.*?%\}"
    text = re.sub(code, "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert _offences(iter(text.splitlines())) == []


def test_an_offence_would_be_found():
    assert _offences(iter(["the map is made anew", "a plain line", "`anew` in code"])) == [
        "the map is made anew"
    ]
    assert list(_docstrings('def f():\n    """Return what follows."""')) == ["Return what follows."]
    assert STARTS.match("Return what follows.")
    assert FRAGMENT.match("seconds: Of the stretch.")
    assert list(_sentences('x = "two words"  # a comment\ny = "one"')) == [
        '"two words"',
        "# a comment",
    ]
