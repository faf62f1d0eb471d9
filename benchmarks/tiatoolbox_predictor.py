"""Compare `wsi-idc map --slide` with the PatchPredictor of TIAToolbox, by turns.

python benchmarks/tiatoolbox_predictor.py slide.svs --python ~/toolbox/bin/python

Both programs predict the same patches with the same network; each run is a process of its own.
TIAToolbox and its packages are in another environment, with Python 3.11 or later.
"""

import argparse
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wsi_idc.bench.fixtures import drawn_pack, make_checkpoint
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.inference.probability import idc_probability
from wsi_idc.maps.map_reader import map_paths, read_map
from wsi_idc.models.checkpoint import InputSpec, save_checkpoint
from wsi_idc.models.checkpoint_files import BUNDLED
from wsi_idc.runtime.device import select_device
from wsi_idc.runtime.resources import available_cores
from wsi_idc.slides.slide import open_slide
from wsi_idc.slides.tiling import SlideSettings, tile_slide

TIATOOLBOX = "TIAToolbox"
_BENCHMARKS = Path(__file__).resolve().parent
_MASK_PX = 16  # side of a patch in the mask; a black edge of 1 px allows for rounding
_NUM_DRAWN = 64
_SAMPLE_SECONDS = 2.0  # a sample stops the process for about 0.05 s


class Usage(NamedTuple):
    """Resources that a process and its children used."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def measure(command: Sequence[str | Path], log: Path) -> Usage:
    """Run a command; its output goes to ``log``.

    The memory is the largest sum over the processes, sampled every two seconds. Each process counts
    its part of the pages that several processes share (PSS).
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(_BENCHMARKS.parent)}
    peak, start = 0.0, time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            while process.returncode is None:
                peak = max(peak, _memory_mb(process.pid))
                try:
                    process.wait(_SAMPLE_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"Error: a program failed:\n{log.read_text()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Usage(seconds, cpu, peak)


def _memory_mb(pid: int | str) -> float:
    """Return the memory of a process and its children; 0 without /proc or after its end."""
    process = Path(f"/proc/{pid}")
    try:
        pss = re.search(r"^Pss:\s+(\d+)", (process / "smaps_rollup").read_text(), re.MULTILINE)
        lists = [path.read_text().split() for path in process.glob("task/*/children")]
    except OSError:
        return 0.0
    own = int(pss[1]) / 1000 if pss else 0.0
    return own + sum(_memory_mb(child) for children in lists for child in children)


def write_mask(path: Path, slide_path: Path, spec: InputSpec, *, num_patches: int) -> int:
    """Write a picture whose white squares select patches with tissue; return their number.

    Args:
        path: PNG file to write.
        slide_path: Slide file.
        spec: Size and resolution of the patches.
        num_patches: Number of patches to select, from the top; 0 means all.
    """
    with open_slide(slide_path) as slide:
        tiled = tile_slide(slide, SlideSettings(), patch_px=spec.patch_px, mpp=spec.mpp)
        scale = _MASK_PX * slide.mpp / (spec.patch_px * spec.mpp)
        mask = np.zeros((round(slide.height * scale), round(slide.width * scale)), np.uint8)
    corners = tiled.patches.coords[: num_patches or None]
    for x, y in np.rint(corners * scale).astype(int):
        mask[y + 1 : y + _MASK_PX - 1, x + 1 : x + _MASK_PX - 1] = 255
    Image.fromarray(mask).save(path)
    return len(corners)


def largest_difference(map_file: Path, other: Mapping[str, NDArray]) -> float:
    """Compare the probabilities of both programs patch by patch, before calibration.

    Args:
        map_file: Map of ``wsi-idc map``.
        other: Content of the file of ``benchmarks/tiatoolbox_run.py``.
    """
    patient_map = read_map(map_file)
    scale = patient_map.mpp / patient_map.level0_mpp
    ours, theirs = patient_map.coords, np.rint(other["corners_px"] * scale).astype(int)
    order, other_order = (np.lexsort(corners.T) for corners in (ours, theirs))
    if not np.array_equal(ours[order], theirs[other_order]):
        sys.exit(f"Error: the programs read different patches: {len(ours)} and {len(theirs)}")
    probability = idc_probability(patient_map.logit, temperature=1.0)
    return float(np.abs(probability[order] - other["probability"][other_order]).max())


def print_table(usages: Mapping[str, Sequence[Usage]]) -> None:
    """Print medians of each program, and the median and the range of the ratios of the rounds."""
    others = np.array(usages[TIATOOLBOX])
    print("| program | time | CPU time | memory | time of TIAToolbox | its CPU time |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, rounds in usages.items():
        seconds, cpu, peak = np.median(rounds, axis=0)
        ratios = (others / np.array(rounds))[:, :2].T
        times = [f"{np.median(r):.1f} ({r.min():.1f} to {r.max():.1f}) times" for r in ratios]
        columns = times if name != TIATOOLBOX else ["", ""]
        cells = (name, f"{seconds:.1f} s", f"{cpu:.1f} s", f"{peak:,.0f} MB", *columns)
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Measure all programs; print the settings, a table and the differences of the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("slide", type=Path, help="Slide that states its microns per px.")
    parser.add_argument("--python", type=Path, required=True, help="Python with TIAToolbox.")
    parser.add_argument("--model", default=BUNDLED, help="bundled, or a name: random weights.")
    parser.add_argument("--input-size", type=int, default=0, help="Side of the input in px.")
    parser.add_argument("--precisions", default="auto,fp32", help="Of wsi-idc, with commas.")
    parser.add_argument("--patches", type=int, default=0, help="Patches to predict; 0: all.")
    parser.add_argument("--batch-size", type=int, default=64, help="Batch size of TIAToolbox.")
    parser.add_argument("--workers", type=int, default=2, help="Workers of TIAToolbox.")
    parser.add_argument("--rounds", type=int, default=3, help="Runs of each program.")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="wsi-idc-bench-") as name:
        try:
            compare(arguments, Path(name))
        except (WsiIdcError, OSError) as error:
            sys.exit(f"Error: {error}")


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Run all programs by turns and print the result; ``folder`` is for their files."""
    pack = drawn_pack(folder / "drawn.h5", _NUM_DRAWN, a_patient=_NUM_DRAWN)
    checkpoint, network = make_checkpoint(
        arguments.model, input_size=arguments.input_size, pack=pack
    )
    spec, model, mask = checkpoint.input, folder / "model.pt", folder / "mask.png"
    # wsi-idc map refuses a checkpoint without metrics, because its training is not finished.
    save_checkpoint(model, replace(checkpoint, metrics=checkpoint.metrics or {"network": network}))
    num = write_mask(mask, arguments.slide, spec, num_patches=arguments.patches)

    toolbox = [arguments.python, _BENCHMARKS / "tiatoolbox_run.py"]
    measure([*toolbox, "--help"], folder / "log.txt")  # the first import compiles the packages
    options: list[str | Path] = ["--slide", arguments.slide, "--checkpoint", model]
    cut = ["--mask", mask, "--mask-frame", "level0"] if arguments.patches else []
    commands: dict[str, list[str | Path]] = {}
    for precision in arguments.precisions.split(","):
        name = f"wsi-idc, {select_device('cpu', precision).precision}"
        ours = [sys.executable, "-m", "wsi_idc", "map", *options, *cut]
        commands[name] = [*ours, "--device", "cpu", "--precision", precision]
    settings = ["--batch-size", str(arguments.batch_size), "--workers", str(arguments.workers)]
    commands[TIATOOLBOX] = [*toolbox, *options, "--mask", mask, *settings]

    usages: dict[str, list[Usage]] = {name: [] for name in commands}
    for number in range(arguments.rounds):
        for name, command in commands.items():
            out = folder / name
            shutil.rmtree(out, ignore_errors=True)
            usage = measure([*command, "--out", out], folder / "log.txt")
            usages[name].append(usage)
            print(f"round {number + 1}: {name}: {usage}", file=sys.stderr, flush=True)

    predicted = np.load(folder / TIATOOLBOX / "patches.npz")
    version, their_torch = predicted["versions"]
    print(f"network      {network}")
    print(f"patches      {num:,} of {spec.patch_px} px at {spec.mpp:g} um/px, {arguments.slide}")
    print(f"machine      {available_cores()} CPU cores; rounds: {arguments.rounds}")
    print(f"wsi-idc      torch {torch.__version__}; with CAMs, quality flags and a picture")
    print(
        f"TIAToolbox   {version}, torch {their_torch}, fp32, batch size {arguments.batch_size}, "
        f"{arguments.workers} workers; probabilities only"
    )
    print_table(usages)
    for name in list(commands)[:-1]:
        (map_file,) = map_paths(folder / name)
        difference = largest_difference(map_file, predicted)
        print(f"{name}: largest difference of a probability {difference:.1e}")


if __name__ == "__main__":
    main()
