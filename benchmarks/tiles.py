"""Measure how fast wsi-idc view sends random tiles of a slide to several clients.

python benchmarks/tiles.py slide.svs
"""

import argparse
import http.client
import json
import math
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

_LOWEST_LEVEL = 7


class TileTimes(NamedTuple):
    """Times of requests, and memory of the server.

    Attributes:
        median_ms, percentile_95_ms: Time of a request.
        peak_mb: Peak memory of the server; None on a system without /proc.
    """

    median_ms: float
    percentile_95_ms: float
    peak_mb: float | None


def bench_tiles(slide: Path, *, num_tiles: int, num_clients: int, seed: int = 0) -> TileTimes:
    """Start wsi-idc view for a slide, request random tiles of all levels, and stop the server."""
    command = [sys.executable, "-m", "wsi_idc", "view", str(slide), "--no-browser"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as server:
        try:
            assert server.stdout is not None
            address = re.search(r":(\d+)/\?token=(\S+)", server.stdout.readline())
            assert address is not None, server.communicate()
            port, token = int(address[1]), address[2]
            headers = {"Cookie": f"wsi_idc_view_{port}={token}"}
            tissue = json.loads(_ask(port, headers, "/items/0")[0])["tissue"]
            paths = _random_tiles(tissue, num_tiles, random.Random(seed))
            with ThreadPoolExecutor(num_clients) as clients:
                answers = clients.map(lambda path: _ask(port, headers, path), paths)
                times = sorted(seconds for _, seconds in answers)
            peak = _peak_mb(server.pid)
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate()
    median, high = times[len(times) // 2], times[math.ceil(0.95 * len(times)) - 1]
    return TileTimes(1000 * median, 1000 * high, peak)


def _random_tiles(tissue: dict[str, Any], num: int, rng: random.Random) -> list[str]:
    paths = []
    for _ in range(num):
        level = rng.randint(min(_LOWEST_LEVEL, tissue["maxLevel"]), tissue["maxLevel"])
        tile_px = tissue["tilePx"] * 2 ** (tissue["maxLevel"] - level)
        col, row = (rng.randrange(math.ceil(tissue[s] / tile_px)) for s in ("width", "height"))
        paths.append(f"/items/0/tiles/{level}/{col}_{row}.jpg")
    return paths


def _ask(port: int, headers: dict[str, str], path: str) -> tuple[bytes, float]:
    """Request a path; return the body of the answer, and the time of the request in seconds."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == http.client.OK, body
    return body, time.perf_counter() - start


def _peak_mb(pid: int) -> float | None:
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1000 if found else None


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("slide", type=Path, help="slide that states its microns per px")
    parser.add_argument("--tiles", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    times = bench_tiles(options.slide, num_tiles=options.tiles, num_clients=options.clients)
    print(f"{options.tiles} tiles, {options.clients} clients")
    print(f"median            {times.median_ms:.0f} ms")
    print(f"95th percentile   {times.percentile_95_ms:.0f} ms")
    if times.peak_mb is not None:
        print(f"memory of server  {times.peak_mb:.0f} MB")


if __name__ == "__main__":
    main()
