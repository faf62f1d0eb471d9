import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from tests.slides.tiffs import noise, write_scn, write_tiff
from tests.small_maps import EVIL, write_hand_map
from tests.small_slides import box, write_outlines
from tests.view.servers import ask, running
from tests.view.test_catalog import slide_map
from tests.view.test_tiles import decode
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.maps.map_writer import write_map
from wsi_idc.runtime.signals import StopRequest
from wsi_idc.view.catalog import Catalog, read_catalog
from wsi_idc.view.server import HOST, ViewServer, serve


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Return the catalog of a map with its slide, and a map of a pack."""
    slide = write_tiff(tmp_path / "s.tif", noise(800, 900), mpp=0.5)
    (tmp_path / "maps").mkdir()
    write_map(tmp_path / "maps" / "P1.h5", slide_map(provenance={"data": str(slide)}))
    write_hand_map(tmp_path / "maps", patient=EVIL)
    return read_catalog([tmp_path / "maps"])


def test_who_has_not_the_token_gets_nothing(catalog: Catalog):
    with running(catalog) as server:
        paths = ["/", "/items", "/items/0", "/items/1/tiles/10/0_0.jpg", "/files/view.js", "/no"]
        for path in paths:
            for cookie in (None, "wrong", server.token[:-1], "é"):
                status, body, _ = ask(server, path, cookie=cookie)
                assert (status, b"token" in body) == (403, True), path
            assert ask(server, path)[0] == (404 if path == "/no" else 200)
        assert ask(server, "/?token=wrong", cookie=None)[0] == 403
        assert ask(server, f"/items?token={server.token}", cookie=None)[0] == 403
        status, body, headers = ask(server, f"/?token={server.token}", cookie=None)
        assert status == 200
        assert server.token.encode() not in body
        cookie = headers["Set-Cookie"]
        assert cookie.startswith(f"wsi_idc_view_{server.port}={server.token}; ")
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))


def test_a_foreign_host_is_refused(catalog: Catalog):
    with running(catalog) as server:
        for host in ("evil.example", f"evil.example:{server.port}", HOST, "localhost", "[::1]"):
            status, body, _ = ask(server, "/items", host=host)
            assert (status, body[:16]) == (403, b"open the address"), host
        assert ask(server, "/items", host=f"localhost:{server.port}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/files/../../../../etc/passwd",
        "/files/..%2f..%2fsetup.cfg",
        "/files/server.py",
        "/files/%00",
        "/items/../../etc/passwd",
        "/items/0/../../../etc/passwd",
        "/items/2",
        "/items/99999999",
        "/items/-1",
        "/items/0/tissue.png/..",
        "/items/0/tiles/10/-1_0.jpg",
        "/items/0/tiles/10/9_0.jpg",
        "/items/0/tiles/99/0_0.jpg",
        "/items/0/tissue.png",
        "//etc/passwd",
    ],
)
def test_no_address_is_a_path_of_a_file(catalog: Catalog, path: str):
    with running(catalog) as server:
        status, body, _ = ask(server, path)
        assert status == 404
        assert b"root" not in body
        assert b"\n" not in body


def test_every_answer_has_the_headers(catalog: Catalog):
    with running(catalog) as server:
        for path in ("/", "/items", "/items/1/tiles/10/0_0.jpg", "/no"):
            _, _, headers = ask(server, path)
            assert headers["Content-Security-Policy"].startswith("default-src 'self'; ")
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Frame-Options"] == "DENY"
            assert "Tornado" not in headers["Server"]
        assert ask(server, "/items", method="POST")[0] == 405


def test_items_tissue_and_values(catalog: Catalog):
    with running(catalog) as server:
        listed = json.loads(ask(server, "/items")[1])
        assert [item["name"] for item in listed["items"]] == [EVIL, "P1"]
        assert listed["items"][0]["auc"] == 0.75
        assert listed["items"][0]["mean_uncertainty"] is None
        pack, slide = (json.loads(ask(server, f"/items/{at}")[1]) for at in (0, 1))
        assert pack["tissue"]["kind"] == "picture"
        assert slide["tissue"] | {"note": ""} == {
            "kind": "slide",
            "file": "s.tif",
            "width": 900,
            "height": 800,
            "mpp": 0.5,
            "maxLevel": 10,
            "tilePx": 254,
            "overlapPx": 1,
            **{"x": 131, "y": 17, "side": 400, "scale": 1, "left": 0, "top": 0},
            "note": "",
        }
        values = np.frombuffer(ask(server, "/items/1/values")[1], "<f4")
        assert values.reshape(len(slide["columns"]), -1).shape == (7, 5)
        assert ask(server, "/items/1/cam.png")[1].startswith(b"\x89PNG")
        tile = decode(ask(server, "/items/1/tiles/10/3_3.jpg")[1])
        assert tile.shape == (39, 139, 3)


def test_a_slide_without_a_map_has_no_layers(tmp_path: Path):
    write_tiff(tmp_path / "s.tif", noise(80, 90), mpp=0.5)
    write_tiff(tmp_path / "t.tif", noise(80, 90))
    with running(read_catalog([tmp_path])) as server:
        record = json.loads(ask(server, "/items/0")[1])
        assert (record["layers"], record["tissue"]["kind"]) == ([], "slide")
        assert ask(server, "/items/0/values")[0] == 404
        status, body, _ = ask(server, "/items/1")
        assert status == 500
        assert body.decode().endswith("does not state its microns per pixel; give --mpp")


def test_annotations_are_in_px_of_the_slide(tmp_path: Path):
    write_tiff(tmp_path / "s.tif", noise(800, 900), mpp=0.5)
    outlines = tmp_path / "outlines"
    outlines.mkdir()
    with running(read_catalog([tmp_path / "s.tif"], annotations=outlines)) as server:
        assert ask(server, "/items/0/outlines")[1] == b"[]"
        write_outlines(outlines / "s.geojson", ("Tumor", box(1, 1, 2, 3)))
        (outline,) = json.loads(ask(server, "/items/0/outlines")[1])
        assert outline["name"] == "Tumor"
        assert sorted(map(tuple, outline["rings"][0][:4])) == [
            (200, 200),
            (200, 600),
            (400, 200),
            (400, 600),
        ]
        (outlines / "s.geojson").write_text("{")
        status, body, _ = ask(server, "/items/0/outlines")
        assert (status, b"damaged or cut short" in body) == (500, True)


@pytest.mark.parametrize(("frame", "left"), [("level0", 200), ("qupath", 1200)])
def test_annotations_of_a_slide_with_bounds(tmp_path: Path, frame: str, left: int):
    area = np.full((600, 800, 3), 200, np.uint8)
    write_scn(tmp_path / "s.scn", area, x=1000, y=500, glass=(3000, 2000), mpp=0.5)
    write_outlines(tmp_path / "s.geojson", ("Tumor", box(1, 1, 2, 2)))
    catalog = read_catalog(
        [tmp_path / "s.scn"], annotations=tmp_path, annotation_frame=frame, mpp=0.5
    )
    with running(catalog) as server:
        (outline,) = json.loads(ask(server, "/items/0/outlines")[1])
        assert min(x for x, _ in outline["rings"][0]) == left


def test_a_map_that_is_made_again_is_read_again(catalog: Catalog):
    with running(catalog) as server:
        before = ask(server, "/items/0/values")[1]
        assert ask(server, "/items/0/values")[1] == before
        path = catalog.items[0].map_path
        write_hand_map(path.parent, patient=EVIL, probability=np.full(5, 0.75, np.float32))
        assert ask(server, "/items/0/values")[1] != before
        path.unlink()
        status, body, _ = ask(server, "/items/0/values")
        assert (status, b"No such file" in body) == (500, True)


def test_many_requests_at_once(catalog: Catalog):
    rng = np.random.default_rng(1)
    with running(catalog) as server, ThreadPoolExecutor(8) as clients:
        paths = [
            f"/items/{rng.integers(2)}/tiles/{level}/{rng.integers(4)}_{rng.integers(4)}.jpg"
            for level in rng.integers(0, 11, 200)
        ]
        answers = list(clients.map(lambda path: ask(server, path), paths))
        assert {status for status, _, _ in answers} == {200, 404}
        again = dict(zip(paths, answers, strict=True))
        for path in paths[:20]:
            assert ask(server, path)[:2] == again[path][:2]


def test_a_stop_signal_ends_the_server_and_frees_the_port(catalog: Catalog):
    server, stop, opened = ViewServer(catalog), StopRequest(), []

    def started() -> None:
        def visit() -> None:
            opened.append(ask(server, "/items/1/tiles/10/0_0.jpg")[0])
            stop.signal_name = "SIGINT"

        Thread(target=visit).start()

    asyncio.run(serve(server, stop, port=0, started=started))
    assert opened == [200]
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind((HOST, server.port))
    with pytest.raises(RuntimeError):
        server.threads.submit(print)


def test_a_port_that_is_in_use(catalog: Catalog):
    with running(catalog) as server:
        other = ViewServer(catalog)

        async def start_and_stop() -> None:
            try:
                other.start(server.port)
            finally:
                await other.stop()

        with pytest.raises(WsiIdcError, match=f"port {server.port}: address already in use; give"):
            asyncio.run(start_and_stop())
