"""Local web server of the viewer: checks of requests, URLs, start and stop.

The server listens on 127.0.0.1 only. A browser that opens the address with the token gets a cookie,
and every other request needs this cookie. A request whose header ``Host`` is not the server's
address is refused. Otherwise a web site could direct its own domain name to 127.0.0.1 and reach the
server. URLs contain numbers of catalog items and names of a fixed list, never a file path.
"""

import asyncio
import errno
import hmac
import json
import logging
import os
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

import numpy as np
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.web import Application, HTTPError, RequestHandler

from wsi_idc.core.errors import WsiIdcError
from wsi_idc.plotting.html import page_template
from wsi_idc.runtime.resources import available_cores
from wsi_idc.runtime.signals import StopRequest
from wsi_idc.slides.annotations import find_annotation_file, read_annotations
from wsi_idc.view.catalog import Catalog, CatalogItem
from wsi_idc.view.layers import map_layers
from wsi_idc.view.tiles import OVERLAP_PX, TILE_PX, ByteCache
from wsi_idc.view.tissue import OpenTissues, Tissue

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_CACHE_BYTES = 256 * 2**20
_MAX_THREADS = 8
_POLL_SECONDS = 0.1  # time between two checks for a stop signal
_MAX_CACHED_MAP = 64 * 2**20
_MAX_REQUEST_BYTES = 2**16
# Columns of the table of the cohort that the list of patients shows.
_ROW = (
    *("patient", "patches", "area_mm2", "idc_area_mm2", "idc_fraction", "auc", "dice"),
    *("mean_uncertainty", "mean_novelty", "flagged", "role"),
)
# Hash of the only style that OpenSeadragon adds to the page.
_OSD_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
_HEADERS = {
    "Content-Security-Policy": f"default-src 'self'; style-src 'self' {_OSD_STYLE}; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "wsi-idc",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# Files of the page. For each name in a URL: path in this package, and media type.
_FILES = {
    "view.css": ("templates/view.css", "text/css"),
    "view.js": ("templates/view.js", "text/javascript"),
    "pane.js": ("templates/pane.js", "text/javascript"),
    "enter.js": ("templates/enter.js", "text/javascript"),
    "openseadragon.js": ("openseadragon/openseadragon.min.js", "text/javascript"),
}


class ViewServer(Application):
    """The web server of a catalog; ``start`` and ``stop`` must run in the same event loop.

    Args:
        catalog: Items that the server shows.

    Attributes:
        port: Port of the server; 0 before the start.
        token: Secret in the address of the first page.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.port = 0
        self.token = secrets.token_urlsafe(32)
        self.tissues = OpenTissues(catalog)
        self.cache = ByteCache(_CACHE_BYTES)
        num_threads = max(2, min(available_cores(), _MAX_THREADS))
        self.threads = ThreadPoolExecutor(num_threads, thread_name_prefix="view")
        self._server: HTTPServer | None = None
        item = r"/items/(\d{1,7})"
        handlers: list[Any] = [
            (r"/", _PageHandler),
            (r"/files/([a-z.]{1,40})", _FileHandler),
            (r"/items", _ListHandler),
            (item, _make_handler(_item_json, "application/json")),
            (rf"{item}/values", _make_handler(_values, "application/octet-stream")),
            (rf"{item}/(cam|tissue)\.png", _make_handler(_picture, "image/png")),
            (rf"{item}/outlines", _make_handler(_outlines_json, "application/json")),
            (
                rf"{item}/tiles/(\d{{1,2}})/(\d{{1,7}})_(\d{{1,7}})\.jpg",
                _make_handler(_tile, "image/jpeg"),
            ),
        ]
        super().__init__(
            handlers, default_handler_class=_NotFoundHandler, log_function=_log_request
        )

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Check a request and find its handler; requests for unknown pages are checked too.

        A refused request gets a page with status 403.
        """
        if reason := self._refusal(request):
            return self.get_handler_delegate(request, _RefusedHandler, {"reason": reason})
        return super().find_handler(request, **kwargs)

    @property
    def cookie(self) -> str:
        """Name of the cookie. The port is in the name: a browser sends a cookie to all ports."""
        return f"wsi_idc_view_{self.port}"

    @property
    def address(self) -> str:
        """Address of the first page, with the token."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def _refusal(self, request: HTTPServerRequest) -> str:
        """Return the reason why a request is refused; empty if the request is allowed."""
        if request.headers.get("Host") not in (f"{HOST}:{self.port}", f"localhost:{self.port}"):
            return f"open the address that wsi-idc view printed; it begins with http://{HOST}"
        given = [request.cookies[self.cookie].value] if self.cookie in request.cookies else []
        if request.path == "/":
            given += [value.decode("latin-1") for value in request.query_arguments.get("token", ())]
        if not any(hmac.compare_digest(value.encode(), self.token.encode()) for value in given):
            return "open the complete address that wsi-idc view printed; it contains a token"
        return ""

    def start(self, port: int = 0) -> None:
        """Listen on ``port`` of 127.0.0.1; 0 means any free port.

        Raises:
            WsiIdcError: The port is in use, or the user has no permission for this port.
        """
        try:
            listener = socket.create_server((HOST, port))
        except OSError as error:
            reason = os.strerror(error.errno or errno.EINVAL).lower()
            raise WsiIdcError(
                f"port {port}: {reason}; give another --port, or leave out --port"
            ) from None
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._server = HTTPServer(
            self, max_body_size=_MAX_REQUEST_BYTES, max_header_size=_MAX_REQUEST_BYTES
        )
        self._server.add_socket(listener)

    async def stop(self) -> None:
        """Close the port, all connections and all slides."""
        if self._server is not None:
            self._server.stop()
            await self._server.close_all_connections()
        self.threads.shutdown(cancel_futures=True)
        self.tissues.close()


async def serve(
    server: ViewServer, stop: StopRequest, *, port: int, started: Callable[[], None]
) -> None:
    """Run a server until a stop signal arrives.

    Args:
        server: The server.
        stop: Flag of the stop signals.
        port: Port; 0 means any free port.
        started: Function that is called when the server answers.
    """
    server.start(port)
    try:
        started()
        while not stop:
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        await server.stop()


def _log_request(handler: RequestHandler) -> None:
    request = handler.request  # the path has no token
    logger.debug("%d %s %s", handler.get_status(), request.method, request.path)


class _Handler(RequestHandler):
    """Handler that adds the common headers to each answer; the answer to an error is plain text."""

    application: ViewServer

    def set_default_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        error = kwargs.get("exc_info", (None, None))[1]
        is_known = isinstance(error, HTTPError) and error.log_message
        self.finish(error.log_message if is_known else f"{status_code} {self._reason}")

    def log_exception(self, *info: Any) -> None:
        if not isinstance(info[1], HTTPError):
            super().log_exception(*info)


class _RefusedHandler(_Handler):
    def initialize(self, reason: str) -> None:
        self._why = reason

    def prepare(self) -> None:
        raise HTTPError(403, self._why.replace("%", "%%"))


class _NotFoundHandler(_Handler):
    def prepare(self) -> None:
        raise HTTPError(404, "there is no such page")


class _PageHandler(_Handler):
    def get(self) -> None:
        if self.get_query_argument("token", None) is None:
            self.finish(page_template("view/templates/index.html").render())
            return
        server = self.application
        self.set_cookie(server.cookie, server.token, httponly=True, samesite="Strict")
        # This page opens the viewer by a script. After a redirect, a browser would not send the
        # cookie if the first address was opened from a file or from another site.
        self.finish(page_template("view/templates/enter.html").render())


class _FileHandler(_Handler):
    def get(self, name: str) -> None:
        if name not in _FILES:
            raise HTTPError(404, "there is no such file")
        path, media_type = _FILES[name]
        self.set_header("Content-Type", media_type)
        self.finish((resources.files("wsi_idc.view") / path).read_bytes())


class _ListHandler(_Handler):
    def get(self) -> None:
        catalog = self.application.catalog
        items = [
            {
                "index": index,
                "name": item.name,
                "mapName": item.map_name,
                "isMap": item.map_path is not None,
                **{name: _json_value(item.row.get(name)) for name in _ROW},
            }
            for index, item in enumerate(catalog.items)
        ]
        failed = [[path.name, reason] for path, reason in catalog.failed.items()]
        has_annotations = catalog.annotations is not None
        self.finish({"items": items, "failed": failed, "hasAnnotations": has_annotations})


def _json_value(value: Any) -> Any:
    """Convert a value of a table to a JSON value; NaN and infinity become null."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


def _make_handler(answer: Callable[..., bytes], media_type: str) -> type[_Handler]:
    """Return a handler class that sends the result of the function ``answer``.

    ``answer`` runs in a thread. Its arguments are the server, the index of the item, and the other
    variable parts of the URL.
    """

    class Handler(_Handler):
        async def get(self, index: str, *parts: str) -> None:
            server = self.application
            if int(index) >= len(server.catalog.items):
                raise HTTPError(404, "there is no such map")
            self._future = server.threads.submit(answer, server, int(index), *parts)
            try:
                data = await asyncio.wrap_future(self._future)
            except LookupError:
                raise HTTPError(404, "there is no such part of the map") from None
            except (WsiIdcError, OSError) as error:
                logger.warning("%s: %s", server.catalog.items[int(index)].name, error)
                raise HTTPError(500, str(error).replace("%", "%%")) from None
            self.set_header("Content-Type", media_type)
            self.finish(data)

        def on_connection_close(self) -> None:
            # Do not compute a tile that is no longer visible: the browser has closed the request.
            if future := getattr(self, "_future", None):
                future.cancel()

    return Handler


def _tile(server: ViewServer, index: int, level: str, col: str, row: str) -> bytes:
    place = (int(level), int(col), int(row))

    def make() -> bytes:
        with server.tissues.use(index) as tissue:
            return tissue.tiles.jpeg(*place)

    return server.cache.get(("tile", index, *place), make)


def _item_json(server: ViewServer, index: int) -> bytes:
    item = server.catalog.items[index]
    record = {"layers": [], "columns": []} | json.loads(_map_part(server, item, "record"))
    with server.tissues.use(index) as tissue:
        record["tissue"] = _tissue_record(tissue)
    return json.dumps(record).encode()


def _tissue_record(tissue: Tissue) -> dict[str, Any]:
    slide = tissue.tiles.slide
    return {
        "kind": tissue.kind,
        "file": slide.path.name,
        "width": slide.width,
        "height": slide.height,
        "mpp": slide.mpp,
        "maxLevel": tissue.tiles.max_level,
        "tilePx": TILE_PX,
        "overlapPx": OVERLAP_PX,
        **{name: getattr(tissue, name) for name in ("x", "y", "side", "scale", "left", "top")},
        "note": tissue.note,
    }


def _values(server: ViewServer, index: int) -> bytes:
    return _map_part(server, server.catalog.items[index], "values")


def _picture(server: ViewServer, index: int, name: str) -> bytes:
    return _map_part(server, server.catalog.items[index], name)


def _map_part(server: ViewServer, item: CatalogItem, part: str) -> bytes:
    """Return a part of ``MapLayers`` as bytes: "record", "values", "cam" or "tissue"."""
    if item.map_path is None:
        if part == "record":
            return b"{}"
        raise LookupError(part)
    path = item.map_path
    state = path.stat()

    def key(name: str) -> tuple[Any, ...]:
        # A map that was made again has another key.
        return (item.name, state.st_mtime_ns, state.st_size, name)

    def make() -> bytes:
        layers = map_layers(path)
        parts = {"record": json.dumps(layers.record).encode(), "values": layers.values}
        parts |= layers.pictures
        for name, data in parts.items():
            if len(data) < _MAX_CACHED_MAP:
                server.cache.get(key(name), lambda data=data: data)  # type: ignore[misc]
        return parts[part]

    return server.cache.get(key(part), make)


def _outlines_json(server: ViewServer, index: int) -> bytes:
    """Return the annotations of a slide as JSON: for each annotation, a name and rings in px."""
    folder = server.catalog.annotations
    with server.tissues.use(index) as tissue:
        slide = tissue.tiles.slide
        file = None
        if folder is not None and tissue.kind == "slide":
            file = find_annotation_file(folder, slide.path)
        if file is None:
            return b"[]"
        annotations = read_annotations(
            file,
            size=(slide.width, slide.height),
            bounds=slide.bounds,
            mpp=slide.mpp,
            frame=server.catalog.annotation_frame,
            properties=slide.properties,
        )
    import shapely

    outlines = []
    for annotation in annotations:
        rings = shapely.get_rings(shapely.get_parts(annotation.geometry))
        points = [shapely.get_coordinates(ring).round(1).tolist() for ring in rings]
        outlines.append({"name": annotation.name, "rings": points})
    return json.dumps(outlines).encode()
