"""Signals that ask a long command to save its work and exit."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from wsi_idc.core.errors import StoppedError

# SLURM sends SIGUSR1 before the time limit with `--signal=USR1@60`.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Flag that a stop signal sets; it is true after the first signal.

    Attributes:
        signal_name: Name of the first signal, such as "SIGTERM"; None before it.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal; a second Ctrl-C aborts at once, without a save."""
        if self and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = self.signal_name or signal.Signals(signum).name


def raise_if_stopped(stop: StopRequest | None, state: str = "") -> None:
    """Raise StoppedError if a stop signal has arrived.

    Args:
        stop: The flag; None never raises.
        state: What is saved, as the message continues after the signal's name: " in epoch 2".
    """
    if stop and stop.signal_name:
        raise stopped_error(stop.signal_name, state)


def stopped_error(reason: str, state: str = "") -> StoppedError:
    """Build the error of a command that ``reason`` stopped, to be raised after the save."""
    return StoppedError(f"Stopped by {reason}{state}; run the same command again to resume")


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Install handlers for the stop signals inside the block and restore the old ones afterwards.

    It must be used in the main thread.
    """
    request = StopRequest()
    old_handlers = {number: signal.signal(number, request.receive) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in old_handlers.items():
            # None: a handler that Python did not install and cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
