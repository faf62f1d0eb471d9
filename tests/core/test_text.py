"""Tests of counts with nouns, lists of names, and lines that fit a terminal."""

import io

import pytest

from wsi_idc.core.text import count, count_patches, join_items, shorten_list, wrap_for_terminal


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_noun_of_one_thing_is_singular() -> None:
    assert count(1, "patient") == "1 patient"
    assert count(0, "patient") == "0 patients"
    assert count(1234, "patch", "patches") == "1,234 patches"
    assert count_patches(1, 1) == "1 patch of 1 patient"


def test_a_long_list_of_names_is_shortened() -> None:
    assert shorten_list(["a", "b"]) == "a, b"
    assert shorten_list([1, 2, 3], max_num=2) == "1, 2 and 1 more"


def test_a_terminal_gets_a_long_line_in_parts_and_a_log_in_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = "/a/path/of/more/than/eighty/characters" * 3
    line = f"checkpoint: {path} (as given, because the option --checkpoint names this file)"
    assert wrap_for_terminal(line, io.StringIO()) == line
    assert wrap_for_terminal("a line of 80 columns".ljust(80), _Terminal()) == (
        "a line of 80 columns".ljust(80)
    )
    parts = wrap_for_terminal(line, _Terminal()).split("\n")
    assert " ".join(part.strip() for part in parts) == line
    assert [part for part in parts if len(part) > 80] == [f"  {path}"]


def test_items_are_joined_in_lines_and_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [f"item number {number}" for number in range(9)]
    joined = join_items(items)
    lines = joined.split("\n")
    assert len(lines) == 3
    assert max(map(len, lines)) <= 71
    assert lines[0] == "item number 0, item number 1, item number 2, item number 3,"
    assert lines[1].startswith("  item number 4, ")
    assert join_items(["one"]) == "one"
    assert join_items(["x" * 100, "y"]) == f"{'x' * 100},\n  y"
    # A terminal keeps the lines that fit.
    monkeypatch.setenv("COLUMNS", "80")
    assert wrap_for_terminal(joined, _Terminal()) == joined
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, wrap_for_terminal(joined, _Terminal()).split("\n"))) <= 40
