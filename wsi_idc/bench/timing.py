"""Measure the speed of several variants of the same work.

The variants run alternately, so that other programs on the machine slow all variants equally.
"""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_idc.core.progress import progress
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.resources import available_cores

COMMAND, BARE, PLAIN = "command", "bare", "plain"
_MB = 2**20


@dataclass(frozen=True)
class BenchmarkResult:
    """Result of one benchmark.

    Attributes:
        what: Name of the benchmark, such as "map" or "train".
        settings: Settings of the benchmark by name, such as "network" and "batch size".
        rates: Median patches per second of each variant: "command", "bare" and "plain".
        ratios: Result of ``command_ratios``: median ratios of rates, such as "command / bare".
        parts: Time of each stage in ms per patch; each stage is measured separately.
        differences: Largest differences between the results of the command and the plain script.
        peak_memory_mb: Result of ``peak_memory``, measured before the first round.
        hints: Recommended settings for this machine.
    """

    what: str
    settings: dict[str, Any]
    rates: dict[str, float]
    ratios: dict[str, float]
    parts: dict[str, float] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: dict[str, float] = field(default_factory=dict)
    hints: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of the printed table: pairs of a name and a value as text."""
        peaks, differences = self.peak_memory_mb.items(), self.differences.items()
        return [
            ("bench", self.what),
            *((name, str(value)) for name, value in self.settings.items()),
            *((name, f"{rate:,.1f} patches/s") for name, rate in self.rates.items()),
            *((name, f"{ratio:.3f}") for name, ratio in self.ratios.items()),
            *((f"stage: {name}", f"{ms:.3f} ms a patch") for name, ms in self.parts.items()),
            *((f"largest difference: {name}", f"{value:.2g}") for name, value in differences),
            *((f"peak memory: {name}", f"{mb:,.0f} MB") for name, mb in peaks),
            *(("hint", hint) for hint in self.hints),
        ]


def machine(device_config: DeviceConfig) -> str:
    """Describe the device and the precision, such as "2 CPU cores, fp32"."""
    device = device_config.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{available_cores()} CPU cores" if device.type == "cpu" else str(device)
    return f"{name}, {device_config.precision}{', compiled' if device_config.compiled else ''}"


def peak_memory(device_config: DeviceConfig) -> dict[str, float]:
    """Return the peak memory in MB of the process ("process") and of a GPU ("device")."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MB}
    if device_config.device.type == "cuda":
        peaks["device"] = torch.cuda.max_memory_allocated(device_config.device) / _MB
    return peaks


# A variant is a function that processes patches and returns their number.
Variant = Callable[[], int]
# Patches per second of each variant by its name, shape (num_rounds,).
Rates = Mapping[str, NDArray[np.float64]]


def interleave(
    variants: Mapping[str, Variant], *, num_rounds: int, device_config: DeviceConfig, label: str
) -> Rates:
    """Measure the speed of each variant once per round; leave out the first round (warm-up).

    Args:
        variants: Functions to measure, by name.
        num_rounds: Number of rounds after the warm-up.
        device_config: Device of the variants. A GPU is synchronized before and after each variant.
        label: Text in front of the progress bar.
    """
    rates = {name: np.zeros(num_rounds + 1) for name in variants}
    with progress((num_rounds + 1) * len(variants), what=label, unit="run") as bar:
        for number in range(num_rounds + 1):
            for name, variant in variants.items():
                rates[name][number] = measure_rate(variant, device_config)
                bar.update(1)
    return {name: values[1:] for name, values in rates.items()}


def medians(values: Rates) -> dict[str, float]:
    """Return, for each name, the median of the values of all rounds."""
    return {name: float(np.median(of_rounds)) for name, of_rounds in values.items()}


def command_ratios(rates: Rates) -> dict[str, float]:
    """Divide the rate of "command" by every other rate in each round; return the median ratios."""
    others = [name for name in rates if name != COMMAND]
    return medians({f"{COMMAND} / {name}": rates[COMMAND] / rates[name] for name in others})


def measure_rate(variant: Variant, device_config: DeviceConfig) -> float:
    """Run ``variant`` once; return the patches per second."""
    _synchronize(device_config)
    started = time.perf_counter()
    num_patches = variant()
    _synchronize(device_config)
    return num_patches / (time.perf_counter() - started)


def _synchronize(device_config: DeviceConfig) -> None:
    if device_config.device.type == "cuda":
        torch.cuda.synchronize(device_config.device)
