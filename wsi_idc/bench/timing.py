"""Ways of doing the same, measured by turns, so that a noisy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from wsi_idc.core.progress import progress
from wsi_idc.runtime.device import Compute

# Does some work and returns the number of patches that it was.
Way = Callable[[], int]


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


def by_turns(
    ways: Mapping[str, Way], *, num_rounds: int, compute: Compute, what: str = "measuring"
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


def rate_of(way: Way, compute: Compute) -> float:
    """Return how many patches a second one run of a way does."""
    wait_for(compute)
    started = time.perf_counter()
    num_patches = way()
    wait_for(compute)
    return num_patches / (time.perf_counter() - started)


def wait_for(compute: Compute) -> None:
    """Wait until the device has done all that it was asked for."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
