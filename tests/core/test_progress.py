import logging
import re
import sys

import pytest

from wsi_idc.core.progress import progress


@pytest.fixture
def log(caplog, monkeypatch):
    """Log every update at once and return the log."""
    monkeypatch.setattr("wsi_idc.core.progress.SECONDS_BETWEEN_LINES", 0)
    caplog.set_level(logging.INFO, logger="wsi_idc.core.progress")
    return caplog


def work(total: int) -> None:
    with progress(total, what="packing") as bar:
        for _ in range(total):
            bar.update(1)


def test_without_a_terminal_progress_goes_to_the_log(log, capsys):
    work(4)
    assert [text.split(" [")[0].split() for text in log.messages] == [
        ["packing:", "25%"],
        ["packing:", "50%"],
        ["packing:", "75%"],
    ]
    assert capsys.readouterr() == ("", "")


def test_lines_of_a_large_training_fit_80_columns(log):
    with progress(277_524, what="epoch 12/30") as bar:
        bar.start_t -= 1800  # half an hour ago
        bar.set_postfix_str("loss 0.123, 12% waiting", refresh=False)
        bar.update(123_456)
    line = log.messages[0]
    assert re.fullmatch(
        r"epoch 12/30:  44% \[30:00<\d\d:\d\d, \S+ patch/s, loss 0.123, 12% waiting\]", line
    )
    assert len(f"12:34:56 {line}") <= 80


@pytest.mark.parametrize(("level", "total"), [(logging.WARNING, 4), (logging.INFO, 0)])
def test_quiet_and_empty_work_show_nothing(log, capsys, level, total):
    log.set_level(level, logger="wsi_idc.core.progress")
    work(total)
    assert log.messages == []
    assert capsys.readouterr() == ("", "")


def test_terminal_shows_a_bar_and_clears_it(log, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    work(4)
    assert log.messages == []
    drawn = capsys.readouterr().err
    assert "packing" in drawn
    assert drawn.endswith("\r")
