import os
import pty
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


TERMINAL = """
import logging, sys
from pathlib import Path
from wsi_idc.core.progress import progress, set_up_logging
from wsi_idc.runtime.signals import stop_requests
set_up_logging(0)
with stop_requests() as stop, progress(10, what="work") as bar:
    print("ready", flush=True)
    while not stop:
        bar.update(0)
    bar.update(5)
    bar.refresh()
    logging.getLogger("wsi_idc").warning("saving")
    print("saved", flush=True)
Path(sys.argv[1]).write_text(stop.signal_name)
"""


def test_process_saves_when_its_terminal_is_closed(tmp_path):
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", TERMINAL, str(tmp_path / "saved")])
    while b"ready" not in os.read(terminal, 100):
        pass
    os.close(terminal)  # the system sends SIGHUP
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "saved").read_text() == "SIGHUP"


def test_nohup_is_respected():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, old)
