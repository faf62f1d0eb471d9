"""Download through kagglehub from a server on this machine that answers as Kaggle does."""

import errno
import gc
import hashlib
import json
import shutil
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import kagglehub
import kagglesdk.kaggle_env
import pytest

from tests.cli.commands import run_command
from tests.packs import make_tree
from wsi_idc.core.errors import DataError, WsiIdcError
from wsi_idc.data.download import HANDLE, download, read_download_path
from wsi_idc.data.open_data import find_patch_tree, open_data
from wsi_idc.data.prepare import prepare

# kagglehub leaves a repeated connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
BY_HAND = f"download the archive from https://www.kaggle.com/datasets/{HANDLE} and run wsi-idc"


class Kaggle:
    """State of the server: archive, status, and the requests that it received."""

    def __init__(self, archive: bytes) -> None:
        self.archive = archive
        self.status = 200
        self.ranges: list[str | None] = []


def handler_of(kaggle: Kaggle) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            requested = self.headers.get("Range")
            kaggle.ranges.append(requested)
            start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0
            md5 = b64encode(hashlib.md5(kaggle.archive).digest()).decode()
            headers = {"Accept-Ranges": "bytes", "X-Goog-Hash": f"md5={md5}"}
            self.answer(206 if requested else 200, kaggle.archive[start:], headers)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            json_type = {"Content-Type": "application/json"}
            if kaggle.status != 200:
                self.answer(kaggle.status, b'{"message": "no"}', json_type)
            elif self.path.endswith("GetDataset"):
                self.answer(200, json.dumps({"currentVersionNumber": 1}).encode(), json_type)
            else:
                self.answer(302, b"", {"Location": "/archive.zip"})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    tree = make_tree(tmp_path / "source")
    shutil.copytree(tree, tree / "IDC_regular_ps50_idx5")
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", tree)
    served = Kaggle(Path(archive).read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(served))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    endpoints = kagglesdk.kaggle_env._env_to_endpoint
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(endpoints, kagglesdk.kaggle_env.KaggleEnv.PROD, address)
    monkeypatch.delenv("KAGGLE_API_ENVIRONMENT", raising=False)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "token")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield served
    server.shutdown()
    thread.join()
    server.server_close()
    gc.collect()  # while the filter above is in force


def test_download_and_prepare_compose(kaggle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = run_command(capsys, "download", "--json")
    assert result.code == 0
    path = Path(json.loads(result.out)["path"])
    assert path == tmp_path / "cache" / "datasets" / HANDLE / "versions" / "1"
    assert len(list(path.rglob("*.png"))) == 14
    assert find_patch_tree(Path("data")) == path
    assert len(open_data()) == 7  # without prepare
    result = run_command(capsys, "prepare", "--json")
    assert result.code == 0
    report = json.loads(result.out)
    assert (report["num_patches"], report["flagged"][0]["reason"]) == (7, "nested copy")
    source = prepare(tmp_path / "source", tmp_path / "source.h5")
    assert report["info"]["source_fingerprint"] == source.info.source_fingerprint
    assert kaggle.ranges == [None]
    assert download(Path("data")) == path
    assert kaggle.ranges == [None]


def test_an_interrupted_download_resumes(kaggle, tmp_path):
    part = tmp_path / "cache" / "datasets" / HANDLE / "1.archive"
    part.parent.mkdir(parents=True)
    part.write_bytes(kaggle.archive[:5000])
    assert len(list(download(tmp_path / "data").rglob("*.png"))) == 14
    assert kaggle.ranges == [None, "bytes=5000-"]
    assert not part.exists()


NO_TOKEN = "put a token from https://www.kaggle.com/settings into ~/.kaggle/access_token or KAGGLE"
AGAIN = "run again with internet access to resume the download"


def invalid_credentials(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(folder))
    (folder / "kaggle.json").write_text("{")


def no_network(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    endpoints = kagglesdk.kaggle_env._env_to_endpoint
    # No program listens on port 9 of this machine.
    monkeypatch.setitem(endpoints, kagglesdk.kaggle_env.KaggleEnv.PROD, "http://127.0.0.1:9")


def no_space(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("kagglehub.clients._download_file", Mock(side_effect=full))


@pytest.mark.parametrize(
    ("prepare_failure", "reason", "advice"),
    [
        (lambda kaggle, *_: setattr(kaggle, "status", 401), "401", NO_TOKEN),
        (lambda kaggle, *_: setattr(kaggle, "status", 403), "403", NO_TOKEN),
        (lambda kaggle, *_: setattr(kaggle, "status", 503), "503", AGAIN),
        (invalid_credentials, "Invalid Kaggle credentials file", NO_TOKEN),
        (no_network, "127.0.0.1", AGAIN),
        (no_space, "No space left on device", "free 7 GB in CACHE, or set KAGGLEHUB_CACHE"),
        (
            lambda kaggle, *_: setattr(kaggle, "archive", b"<html>come back later</html>"),
            "Unsupported archive type.",
            f"remove CACHE/datasets/{HANDLE} and run again",
        ),
    ],
)
def test_a_failed_download_is_one_line_of_advice(
    kaggle, tmp_path, monkeypatch, prepare_failure, reason, advice
):
    prepare_failure(kaggle, monkeypatch, tmp_path)
    with pytest.raises(WsiIdcError) as caught:
        download(tmp_path / "data")
    message = str(caught.value).replace(str(tmp_path / "cache"), "CACHE")
    assert not (tmp_path / "data" / "source.json").exists()
    assert len(message.splitlines()) == 1
    assert message.startswith("the download from Kaggle failed (")
    for part in (reason, f"; {advice}", BY_HAND):
        assert part in message


def test_the_record_of_the_download(tmp_path):
    assert read_download_path(tmp_path) is None
    assert read_download_path(tmp_path / "absent") is None
    note = tmp_path / "source.json"
    note.write_text(json.dumps({"path": str(tmp_path / "gone")}))
    with pytest.raises(DataError, match=r"gone: no such folder, but .+source.json names it"):
        read_download_path(tmp_path)
    for text in ("", "[]", "{}", '{"path": 1}', "\xff"):
        note.write_text(text, encoding="latin-1")
        with pytest.raises(DataError, match="not readable; run wsi-idc download"):
            find_patch_tree(tmp_path)


def test_kagglehub_has_the_names_in_use():
    assert callable(kagglehub.dataset_download)
    for name in ("UnauthenticatedError", "CredentialError", "BackendError", "DataCorruptionError"):
        assert issubclass(getattr(kagglehub.exceptions, name), Exception)
