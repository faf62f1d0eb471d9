import os
import signal
import subprocess
import sys

import pytest

from wsi_idc.runtime.signals import STOP_SIGNALS, stop_requests

LOOP = """
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
def test_a_real_signal_asks_to_stop(number):
    before = handlers()
    with stop_requests() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal_name == number.name
    assert handlers() == before


def test_the_first_signal_is_remembered():
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_name == "SIGUSR1"


def test_a_second_ctrl_c_does_not_wait():
    before = handlers()
    with pytest.raises(KeyboardInterrupt), stop_requests():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_handlers_are_given_back_when_the_block_raises():
    before = handlers()
    with pytest.raises(RuntimeError), stop_requests():
        assert handlers() != before
        raise RuntimeError
    assert handlers() == before


def test_blocks_can_stand_in_one_another():
    with stop_requests() as outer:
        with stop_requests() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert inner and not outer
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer


def test_another_process_saves_and_then_dies_of_the_next_signal():
    with subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "saved after SIGTERM\n"
        child.send_signal(signal.SIGTERM)
    assert child.returncode == -signal.SIGTERM
