import os
import signal
import subprocess
import sys

import pytest

from wsi_idc.core.errors import StoppedError
from wsi_idc.runtime.signals import STOP_SIGNALS, raise_if_stopped, stop_requests

PROGRAM = """
import time
from wsi_idc.runtime.signals import stop_requests
with stop_requests() as stop:
    print("ready", flush=True)
    while not stop:
        time.sleep(0.01)
print("saved after", stop.signal_name, flush=True)
time.sleep(60)
"""


def handlers() -> list:
    return [signal.getsignal(number) for number in STOP_SIGNALS]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_sets_the_request(number):
    before = handlers()
    with stop_requests() as stop:
        assert not stop
        raise_if_stopped(stop)
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal_name == number.name
        message = f"^Stopped by {number.name}, saved; run the same command again to resume$"
        with pytest.raises(StoppedError, match=message):
            raise_if_stopped(stop, ", saved")
    raise_if_stopped(None)
    assert handlers() == before


def test_second_ctrl_c_aborts_at_once_and_restores_the_handlers():
    before = handlers()
    with pytest.raises(KeyboardInterrupt), stop_requests():
        assert handlers() != before
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_blocks_can_be_nested():
    with stop_requests() as outer:
        with stop_requests() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert inner and not outer
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.signal_name == "SIGUSR1"  # the first one is kept


def test_process_saves_at_the_first_signal_and_ends_at_the_next():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "saved after SIGTERM\n"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM
