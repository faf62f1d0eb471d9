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
    for what in ("epoch 2/30", "epoch 12/30", "epoch 120/300"):
        with progress(277_524, what=what, is_short=True) as bar:
            bar.start_t -= 18000  # five hours ago
            bar.set_postfix_str("run 38%, at most 115:12:00 left, loss 0.123", refresh=False)
            bar.update(123_456)
    run = r"44%, \d\d:\d\d left, run 38%, at most 115:12:00 left"
    # The last item is left out if it does not fit.
    for line, what in zip(log.messages[::2], ("2/30", "12/30", "120/300"), strict=True):
        assert re.fullmatch(f"epoch {what}: {run}", line)
        assert len(f"12:34:56 {line}") <= 80
    log.clear()
    with progress(10, what="epoch 2/30", is_short=True) as bar:
        bar.set_postfix_str("run 38%, 12:00 left, loss 0.123", refresh=False)
        bar.update(1)
    assert log.messages[0].endswith("left, run 38%, 12:00 left, loss 0.123")


def test_a_bar_of_a_large_training_fits_80_columns(log, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress(277_524, what="epoch 12/30", is_short=True) as bar:
        bar.start_t -= 18000
        bar.ncols, bar.dynamic_ncols = 80, None  # as in a terminal of 80 columns
        bar.set_postfix_str("run 38%, at most 5:12:00 left, loss 0.123", refresh=False)
        bar.update(123_456)
        text = str(bar)
    run = "run 38%, at most 5:12:00 left, loss 0.123"
    assert re.fullmatch(rf"epoch 12/30:  44%\|.{{4,}}\| \d:\d\d:\d\d left, {run}", text)
    assert len(text) == 80


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
