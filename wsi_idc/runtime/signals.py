"""Signals that ask a long command to save and leave."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGUSR1 is what SLURM sends ahead of a time limit with `--signal=USR1@60`.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers the first signal that asked to stop; false until then."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Note the signal; a second Ctrl-C does not wait for the save."""
        if self and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = self.signal_name or signal.Signals(signum).name


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the stop signals for the length of a block and give the old handlers back after it.

    Must be used in the main thread.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request.receive) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            # None: a handler that Python did not set and so cannot give back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
