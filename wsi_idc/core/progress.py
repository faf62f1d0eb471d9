"""Progress of long work: a bar on a terminal, a plain line every few seconds in a log."""

import io
import logging
import sys
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class _Lines(tqdm):
    """A tqdm that logs whole lines, for a standard error that is no terminal."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Log the present state instead of drawing over the last one."""
        if 0 < self.n < self.total:
            logger.info("%s", msg or str(self))
        return True


class _AboveBar(logging.Handler):
    """Writes log lines to standard error, above a bar that is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        tqdm.write(self.format(record), file=sys.stderr)


def set_up_logging(verbosity: int) -> None:
    """Send the package's log to standard error.

    Args:
        verbosity: -1 warnings only, 0 what happens and how far it is, 1 and more everything.
    """
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    handler = _AboveBar()
    # A log file is read later: it wants the time of each line.
    line = "%(message)s" if sys.stderr.isatty() else "%(asctime)s %(message)s"
    handler.setFormatter(logging.Formatter(line, "%H:%M:%S"))
    package = logging.getLogger("wsi_idc")
    package.handlers[:] = [handler]
    package.setLevel(level)


def progress(total: int, *, what: str, unit: str = "patch", done: int = 0) -> Any:
    """Return a tqdm bar over ``total`` units, silent where the log shows no progress (``-q``).

    Use it as a context manager and call ``update(n)``. What an earlier run has ``done`` counts
    neither for the rate nor for the time left.
    """
    options: dict[str, Any] = {"total": total, "desc": what, "unit": f" {unit}", "leave": False}
    options["initial"] = done
    if not logger.isEnabledFor(logging.INFO):
        return tqdm(**options, disable=True)
    if sys.stderr.isatty():
        return tqdm(**options, dynamic_ncols=True)
    # What tqdm would draw by itself, a carriage return at the end, goes nowhere.
    options |= {"file": io.StringIO(), "ncols": 0}
    return _Lines(**options, mininterval=SECONDS_BETWEEN_LINES, maxinterval=60)
