"""Open a page in headless chromium, do something there, and read back what came of it."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    *("--disable-default-apps", "--disable-domain-reliability"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing leaves this machine, whoever asks
)
# Answers once the document is idle, or with what went wrong.
_HOOK = """
window.addEventListener("error", (event) => { document.body.dataset.error = event.message; });
(function wait() {
  const ready = !window.Bokeh || (Bokeh.documents[0] && Bokeh.documents[0].is_idle);
  if (!ready) return void setTimeout(wait, 50);
  setTimeout(async () => {
    const text = (id) => document.getElementById(id).textContent.trim();
    const model = (name) => Bokeh.documents[0].get_model_by_name(name);
    const pause = (ms) => new Promise((done) => setTimeout(done, ms));
    try {
      const answer = await (async () => { SCRIPT })();
      document.body.dataset.answer = JSON.stringify(answer);
    } catch (error) { document.body.dataset.error = String(error); }
  }, 200);
})();
"""


def ask(page: Path, script: str, *, net_log: Path | None = None) -> Any:
    """Run ``script``, which returns something JSON can say, in the page and return its answer."""
    assert CHROMIUM is not None
    hook = _HOOK.replace("SCRIPT", script)
    digest = base64.b64encode(hashlib.sha256(hook.encode()).digest()).decode()
    html = page.read_text(encoding="utf-8")
    html = re.sub("script-src (?=(&#39;|')sha256)", f"script-src 'sha256-{digest}' ", html)
    head, end, tail = html.rpartition("</body>")
    copy = page.with_name(f"asked-{page.name}")
    copy.write_text(f"{head}<script>{hook}</script>{end}{tail}", encoding="utf-8")
    command = [CHROMIUM, *_QUIET, f"--user-data-dir={page.parent / 'profile'}"]
    command += ["--virtual-time-budget=30000", "--dump-dom"]
    command += [f"--log-net-log={net_log}"] if net_log else []
    result = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=240)
    copy.unlink()
    answer = re.search(r'<body[^>]* data-(answer|error)="([^"]*)"', result.stdout)
    assert answer is not None, result.stderr
    assert answer[1] == "answer", unescape(answer[2])
    return json.loads(unescape(answer[2]))


def requests_in(net_log: Path) -> list[str]:
    """Return the addresses that a page asked for, but for those inside of it.

    The browser itself asks for some, which have no initiator.
    """
    log = json.loads(net_log.read_text())
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    events = [event for event in log["events"] if event["type"] == start]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    own = ("file:", "data:", "blob:")
    return [
        request["url"]
        for request in asked
        if request.get("initiator") != "not an origin" and not request["url"].startswith(own)
    ]
