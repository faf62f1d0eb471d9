"""Drive headless chromium by its DevTools protocol: open a page, click, type, and look at it.

The page is one that a server sends, so that its own policy forbids scripts in it.
https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import base64
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.report.browser import CHROMIUM

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    *("--disable-default-apps", "--disable-domain-reliability", "--hide-scrollbars"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    *("--remote-debugging-port=0", "about:blank"),
)
_MAX_MESSAGE_BYTES = 2**28
_SECONDS = 60.0


class Browser:
    """A chromium with one page.

    Attributes:
        requests: Addresses that the page has asked for.
        problems: Errors of scripts, refused requests and breaches of the policy.
    """

    def __init__(self, folder: Path, *, width: int = 1280, height: int = 800) -> None:
        assert CHROMIUM is not None
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._num_calls = 0
        profile = folder / "chromium"
        profile.mkdir(parents=True, exist_ok=True)
        self._log = (profile / "log").open("wb")
        command = [CHROMIUM, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        self._process = subprocess.Popen([*command, *_FLAGS], stderr=self._log)
        self._socket: WebSocketClientConnection | None = None
        try:
            self._start(profile / "log", width, height)
        except BaseException:
            self.__exit__()
            raise

    def _start(self, log: Path, width: int, height: int) -> None:
        self._socket = self._loop.run_until_complete(self._connect(log))
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._close_socket())
        self._process.terminate()
        self._process.wait(30)
        self._log.close()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _close_socket(self) -> None:
        # close needs a running event loop: Python 3.12 and newer make none.
        if self._socket is not None:
            self._socket.close()

    async def _connect(self, log: Path) -> WebSocketClientConnection:
        deadline = time.monotonic() + _SECONDS
        while not (found := re.search(r"ws://(\S+?)/", log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            await asyncio.sleep(0.05)
        answer = await AsyncHTTPClient().fetch(f"http://{found[1]}/json/list")
        (page,) = [one for one in json.loads(answer.body) if one["type"] == "page"]
        return await websocket_connect(
            page["webSocketDebuggerUrl"], max_message_size=_MAX_MESSAGE_BYTES
        )

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; note the events before it."""
        return self._loop.run_until_complete(self._call(method, params))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        assert self._socket is not None
        self._num_calls += 1
        message = {"id": self._num_calls, "method": method, "params": params}
        await self._socket.write_message(json.dumps(message))
        while True:
            text = await asyncio.wait_for(self._socket.read_message(), _SECONDS)
            assert text is not None, "the browser has ended"
            answer = json.loads(text)
            if answer.get("id") == self._num_calls:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url')}")

    def open(self, address: str) -> None:
        """Open an address; wait until the viewer shows an item."""
        self.call("Page.navigate", url=address)
        self.wait_until("globalThis.view && view.panes.length && view.panes[0].map")
        self.wait_for_tiles()

    def ask(self, script: str) -> Any:
        """Run the body of an async function in the page and return its result."""
        answer = self.call(
            "Runtime.evaluate",
            expression=f"(async () => {{ {script} }})()",
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_until(self, condition: str) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + _SECONDS
        while not self.ask(f"return Boolean({condition})"):
            assert time.monotonic() < deadline, (condition, self.problems)
            time.sleep(0.03)

    def wait_for_tiles(self) -> None:
        """Wait until all panes show all tiles, and do not move."""
        self.ask("await new Promise((done) => setTimeout(done, 100))")
        self.wait_until(
            "view.panes.every(({viewer}) => { const item = viewer.world.getItemAt(0);"
            " return item && item.getFullyLoaded() && !viewer.isAnimating(); })"
        )
        self.ask("await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")

    def click(self, x: float, y: float) -> None:
        """Click at a place of the window."""
        place = {"x": x, "y": y, "button": "left", "clickCount": 1}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **place)

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self, path: Path) -> None:
        """Write a picture of the window as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
