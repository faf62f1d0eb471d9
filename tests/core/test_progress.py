import logging
import sys

import pytest

from wsi_idc.core import progress as module
from wsi_idc.core.progress import progress


@pytest.fixture
def lines(caplog, monkeypatch):
    """Log every update at once, and give what was logged."""
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0)
    caplog.set_level(logging.INFO, logger="wsi_idc.core.progress")
    return caplog


def work(total: int) -> None:
    with progress(total, what="packing") as bar:
        for _ in range(total):
            bar.update(1)


def test_log_gets_whole_lines_and_standard_error_nothing(lines, capsys):
    work(4)
    assert [text.split(" [")[0].split() for text in lines.messages] == [
        ["packing:", "25%", "1/4"],
        ["packing:", "50%", "2/4"],
        ["packing:", "75%", "3/4"],
    ]
    assert capsys.readouterr() == ("", "")


def test_quiet_shows_nothing(lines, capsys):
    lines.set_level(logging.WARNING, logger="wsi_idc.core.progress")
    work(4)
    assert lines.messages == []
    assert capsys.readouterr() == ("", "")


def test_terminal_gets_a_bar_that_is_wiped(lines, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    work(4)
    assert lines.messages == []
    drawn = capsys.readouterr().err
    assert "packing" in drawn
    assert drawn.endswith("\r")


def test_nothing_to_do(lines):
    work(0)
    assert lines.messages == []
