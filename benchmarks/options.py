"""Options and data that the benchmark scripts share."""

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_idc.bench.fixtures import BenchmarkData, choose_patients, open_benchmark_data
from wsi_idc.bench.timing import BenchmarkResult
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.data.pack import Pack


def make_parser(description: str | None, *, patches: int = 0) -> argparse.ArgumentParser:
    """Return a parser with --data, --synthetic, --rounds and --device.

    Args:
        description: Text of --help.
        patches: Default of --patches; 0 leaves the option out.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="Pack, or folder or zip file of patches.")
    parser.add_argument("--synthetic", type=int, default=0, help="Number of patches to draw.")
    parser.add_argument("--rounds", type=int, default=5, help="Measurements of each variant.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps.")
    if patches:
        parser.add_argument("--patches", type=int, default=patches, help="Patches per round.")
    return parser


@contextmanager
def benchmark_data(arguments: argparse.Namespace) -> Iterator[BenchmarkData]:
    """Context manager that yields the data of the arguments, with a temporary folder."""
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="wsi-idc-bench-") as name:
        try:
            data = open_benchmark_data(
                arguments.data, synthetic=arguments.synthetic, folder=Path(name)
            )
        except WsiIdcError as error:
            sys.exit(f"Error: {error}")
        yield data


def choose_rows(pack: Pack, num_patches: int) -> NDArray[np.int64]:
    """Return the rows of all patches of random patients, about ``num_patches`` rows."""
    return np.concatenate([pack.rows_of(name) for name in choose_patients(pack, num_patches)])


def print_result(result: BenchmarkResult) -> None:
    """Print a result as aligned rows."""
    rows = result.rows()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
