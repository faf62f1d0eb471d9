"""Progress of long work, shown as a bar on a terminal or as lines in a log."""

import io
import logging
import sys
from typing import Any

from tqdm import tqdm

from wsi_idc.core.text import LOG_WIDTH, wrap_for_terminal

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
# With the time of day in front, a line has at most 80 columns.
_LINE = "{desc}: {percentage:3.0f}% [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
# Without counts and rate, a postfix with the progress of a complete training fits 80 columns.
_SHORT_BAR = "{desc}: {percentage:3.0f}%|{bar}| {remaining} left{postfix}"
_SHORT_LINE = "{desc}: {percentage:.0f}%, {remaining} left{postfix}"


class _Lines(tqdm):
    """Progress bar that writes lines to the log; used if standard error is not a terminal."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if 0 < self.n < self.total:
            line = msg or str(self)
            while len(line) > LOG_WIDTH and ", " in line:
                line = line.rpartition(", ")[0]  # leave out the last item
            logger.info("%s", line)
        return True


class _AboveBar(logging.Handler):
    """Log handler that writes lines to standard error, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(wrap_for_terminal(self.format(record), sys.stderr), file=sys.stderr)


def set_up_logging(verbosity: int) -> None:
    """Send the package's log to standard error.

    Args:
        verbosity: -1 for warnings only, 0 for messages and progress, 1 or more for everything.
    """
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    handler = _AboveBar()
    # If standard error is a file, each line begins with its time.
    line = "%(message)s" if sys.stderr.isatty() else "%(asctime)s %(message)s"
    handler.setFormatter(logging.Formatter(line, "%H:%M:%S"))
    package = logging.getLogger("wsi_idc")
    package.handlers[:] = [handler]
    package.setLevel(level)


def format_duration(seconds: float) -> str:
    """Format a duration as minutes and seconds, such as "37:00", or with hours, as "5:12:00"."""
    return tqdm.format_interval(seconds)


def progress(
    total: int, *, what: str, unit: str = "patch", done: int = 0, is_short: bool = False
) -> Any:
    """Return a tqdm progress bar, which is a context manager; ``-q`` hides the bar.

    Args:
        total: Number of units of the work; call ``update(n)`` when n more units are done.
        what: Name of the work.
        unit: Name of one unit.
        done: Number of units that an earlier run has done; the rate does not count these units.
        is_short: Show only percent, time left and the postfix.
    """
    options: dict[str, Any] = {"total": total, "desc": what, "unit": f" {unit}", "initial": done}
    options["leave"] = False
    if not logger.isEnabledFor(logging.INFO):
        return tqdm(**options, disable=True)
    if sys.stderr.isatty():
        return tqdm(**options, dynamic_ncols=True, bar_format=_SHORT_BAR if is_short else None)
    # Discard the carriage return that tqdm itself writes at the end.
    line = _SHORT_LINE if is_short else _LINE
    options |= {"file": io.StringIO(), "bar_format": line, "unit_scale": True}
    return _Lines(**options, mininterval=SECONDS_BETWEEN_LINES, maxinterval=60)
