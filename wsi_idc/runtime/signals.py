"""Signals that ask a long command to save its work and exit."""

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from wsi_idc.core.errors import StoppedError

# With `--signal=USR1@60`, SLURM sends SIGUSR1 60 seconds before the time limit of the job. The
# system sends SIGHUP when the terminal is closed.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], None]


class StopRequest:
    """Flag that is true after the first stop signal.

    Attributes:
        signal_name: Name of the first signal, such as "SIGTERM"; None before the first signal.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Handle a stop signal; if a Ctrl-C follows a stop signal, abort at once without a save."""
        if self and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if signum == signal.SIGHUP:
            leave_terminal()
        self.signal_name = self.signal_name or signal.Signals(signum).name


def raise_if_stopped(stop: StopRequest | None, state: str = "") -> None:
    """Raise StoppedError if a stop signal has arrived.

    Args:
        stop: Flag of the stop signals. Without a flag, no error is raised.
        state: Text that follows the name of the signal in the message, such as " in epoch 2".
    """
    if stop and stop.signal_name:
        raise stopped_error(stop.signal_name, state)


def stopped_error(reason: str, state: str = "") -> StoppedError:
    """Create the error of a command that was stopped and has saved its work.

    The message has ``reason``, such as the name of a signal, and then ``state``.
    """
    return StoppedError(f"Stopped by {reason}{state}; run the same command again to resume")


def leave_terminal() -> None:
    """Redirect terminal output to /dev/null, because writing to a closed terminal is an error."""
    for stream in (sys.stdout, sys.stderr):
        # A closed terminal is still a character device, but ``isatty`` returns False.
        if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def handle_signals(numbers: Iterable[int], handler: Handler) -> dict[int, Any]:
    """Install a handler for several signals; return a dict from signal number to old handler.

    If the program was started with ``nohup``, SIGHUP stays ignored.
    """
    return {
        number: signal.signal(number, handler)
        for number in numbers
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Context manager: handle the stop signals inside the block, then restore the old handlers.

    Only the main thread can use this context manager.
    """
    request = StopRequest()
    old_handlers = handle_signals(STOP_SIGNALS, request.receive)
    try:
        yield request
    finally:
        for number, handler in old_handlers.items():
            # None means that C code installed the old handler, and Python cannot restore it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
