import http.client
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.cli.commands import Command, RunCommand
from tests.small_maps import write_hand_map


@pytest.fixture
def maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with two maps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for patient in ("P1", "P2"):
        write_hand_map(tmp_path / "maps", patient=patient)
    return tmp_path


def start(*arguments: object) -> tuple[Command, str, int]:
    """Start a viewer; return the command, the address that it prints and the port."""
    command = Command("view", *arguments)
    deadline = time.monotonic() + 60
    while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/\?token=\S+", command.text())):
        assert time.monotonic() < deadline, command.text()
        assert command.process.is_alive(), command.text()
        time.sleep(0.05)
    return command, found[0], int(found[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_frees_its_port(maps: Path, number: int):
    command, address, port = start()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", address.partition(str(port))[2])
    assert connection.getresponse().status == 200
    command.send_signal(number)
    assert command.wait() == 0, command.text()
    connection.close()
    text = command.text()
    assert "viewing 2 maps or slides" in text
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in text
    assert text.endswith("the server has ended\n")
    assert "Traceback" not in text
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


def test_a_patient_and_a_port_are_chosen(maps: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, _, found = start("P2", "--port", port, "--no-browser")
    assert found == port
    command.send_signal(signal.SIGINT)
    assert command.wait() == 0
    assert "viewing 1 map or slide" in command.text()


def test_a_port_in_use_is_an_error(maps: Path, command: RunCommand):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = command("view", "--port", port)
    assert result.code == 1
    assert result.error.startswith(f"Error: port {port}: address already in use; give another")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "none: no such file, and no patient of this name in maps/"),
        (["maps/P3.h5"], "maps/P3.h5: no such file, and no patient of this name in maps/"),
        (["../../etc/passwd"], "../../etc/passwd: no such file"),
        (["empty"], "empty: no slides in this folder"),
        (["bad.h5"], "nothing to view: bad.h5: not a usable map"),
        (["--slides", "none"], "none: no such folder"),
    ],
)
def test_nothing_to_view_is_one_line(
    maps: Path, command: RunCommand, words: list[str], message: str
):
    Path("empty").mkdir()
    Path("bad.h5").write_text("no map")
    result = command("view", *words)
    assert result.code == 1
    assert message in result.error


def test_no_maps_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand):
    monkeypatch.chdir(tmp_path)
    assert "no maps in maps/; make maps with wsi-idc map" in command("view").error
