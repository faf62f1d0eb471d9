"""A server in a thread of its own, and requests to it."""

import asyncio
import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from wsi_idc.view.catalog import Catalog
from wsi_idc.view.server import HOST, ViewServer


@contextmanager
def running(catalog: Catalog) -> Iterator[ViewServer]:
    """Run a server of a catalog during the ``with`` block."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()

    async def start() -> ViewServer:
        server = ViewServer(catalog)
        server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def ask(
    server: ViewServer,
    path: str,
    *,
    cookie: str | None = "",
    host: str | None = None,
    method: str = "GET",
) -> tuple[int, bytes, dict[str, str]]:
    """Send a request and return status, body and headers.

    Args:
        server: The server.
        path: Path as it is sent.
        cookie: Value of the cookie; the right one by default, none with None.
        host: Header ``Host``; the right one by default.
        method: Method of the request.
    """
    connection = http.client.HTTPConnection(HOST, server.port, timeout=30)
    headers = {"Host": host or f"{HOST}:{server.port}"}
    if cookie is not None:
        headers["Cookie"] = f"{server.cookie}={cookie or server.token}"
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()
