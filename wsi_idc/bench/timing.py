"""Ways of doing the same, measured by turns, so that a noisy machine slows all of them alike."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from wsi_idc.core.progress import progress
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.resources import available_cores

COMMAND, BARE, PLAIN = "command", "bare", "plain"
_MB = 2**20


@dataclass(frozen=True)
class BenchmarkResult:
    """What was measured.

    Attributes:
        what: "map", "train", "prepare" or "loader".
        settings: What it was measured on, and how.
        rates: Median patches a second of each way: command, bare, plain, ...
        ratios: Median over the rounds of one rate over another, such as "command / bare".
        parts: What each part of the command takes by itself, ms a patch; reading and writing
            overlap with the network.
        differences: Largest differences between what the command and the plain way say.
        peak_memory_mb: Of the process, while the command ran; on a GPU also of the device.
        hints: What to choose on this machine, and what could not be measured.
    """

    what: str
    settings: dict[str, Any]
    rates: dict[str, float]
    ratios: dict[str, float]
    parts: dict[str, float] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: dict[str, float] = field(default_factory=dict)
    hints: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values, to be read."""
        return [
            ("bench", self.what),
            *((name, str(value)) for name, value in self.settings.items()),
            *((name, f"{rate:,.1f} patches/s") for name, rate in self.rates.items()),
            *((name, f"{ratio:.3f}") for name, ratio in self.ratios.items()),
            *((f"alone: {name}", f"{ms:.3f} ms a patch") for name, ms in self.parts.items()),
            *(
                (f"largest difference: {n}", f"{value:.2g}")
                for n, value in self.differences.items()
            ),
            *((f"peak memory: {n}", f"{mb:,.0f} MB") for n, mb in self.peak_memory_mb.items()),
            *(("hint", hint) for hint in self.hints),
        ]


def machine(compute: DeviceConfig) -> str:
    """Return what computes, such as "2 CPU cores, fp32"."""
    if compute.device.type == "cuda":
        name = torch.cuda.get_device_name(compute.device)
    elif compute.device.type == "cpu":
        name = f"{available_cores()} CPU cores"
    else:
        name = str(compute.device)
    return f"{name}, {compute.precision}{', compiled' if compute.compiled else ''}"


def peak_memory(compute: DeviceConfig) -> dict[str, float]:
    """Return the largest memory so far, in MB, of the process and of a GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MB}
    if compute.device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(compute.device) / _MB
    return found


MARKDOWN_HEAD = (
    "| command | model | patches/s | of bare | times plain | largest difference |\n"
    "|---|---|---:|---:|---:|---|"
)


def markdown_row(bench: BenchmarkResult) -> str:
    """Return the bench as a row of the table that ``MARKDOWN_HEAD`` begins."""
    of_bare = bench.ratios.get(f"{COMMAND} / {BARE}")
    of_plain = bench.ratios.get(f"{COMMAND} / {PLAIN}")
    differences = ", ".join(f"{name} {value:.0e}" for name, value in bench.differences.items())
    cells = (
        bench.what,
        bench.settings.get("network", ""),
        f"{bench.rates[COMMAND]:,.0f}",
        "" if of_bare is None else f"{of_bare:.2f}",
        "" if of_plain is None else f"{of_plain:.1f}",
        differences,
    )
    return f"| {' | '.join(cells)} |"


# Does some work and returns the number of patches that it was.
Variant = Callable[[], int]


@dataclass(frozen=True)
class Rates:
    """Patches a second of each way, in each round.

    Attributes:
        rounds: Way to its rate in each round.
    """

    rounds: Mapping[str, list[float]]

    def median(self, way: str) -> float:
        """Return the median rate of a way."""
        return statistics.median(self.rounds[way])

    def ratio(self, way: str, other: str) -> float:
        """Return the median, over the rounds, of one rate over another of the same round."""
        pairs = zip(self.rounds[way], self.rounds[other], strict=True)
        return statistics.median(rate / than for rate, than in pairs)

    def ratios_to(self, way: str) -> dict[str, float]:
        """Return the ratio of a way's rate to each other's, as "way / other"."""
        return {f"{way} / {other}": self.ratio(way, other) for other in self.rounds if other != way}

    def medians(self) -> dict[str, float]:
        """Return the median rate of each way."""
        return {way: self.median(way) for way in self.rounds}

    def milliseconds(self) -> dict[str, float]:
        """Return how long each way takes for a patch."""
        return {way: 1000 / self.median(way) for way in self.rounds}


def interleave(
    ways: Mapping[str, Variant], *, num_rounds: int, compute: DeviceConfig, what: str = "measuring"
) -> Rates:
    """Measure each way once a round, after one run of each that does not count.

    Args:
        ways: By name.
        num_rounds: How often.
        compute: Whose device is waited for at the start and the end of each measure.
        what: Stands before the progress bar.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with progress((num_rounds + 1) * len(ways), what=what, unit="run") as bar:
        for number in range(num_rounds + 1):
            for name, way in ways.items():
                rate = rate_of(way, compute)
                if number > 0:
                    rates[name].append(rate)
                bar.update(1)
    return Rates(rates)


def rate_of(way: Variant, compute: DeviceConfig) -> float:
    """Return how many patches a second one run of a way does."""
    wait_for(compute)
    started = time.perf_counter()
    num_patches = way()
    wait_for(compute)
    return num_patches / (time.perf_counter() - started)


def wait_for(compute: DeviceConfig) -> None:
    """Wait until the device has done all that it was asked for."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
