"""Compare `wsi-idc prepare --slides` with reading the same patches once with OpenSlide.

python benchmarks/cut_slide.py slide.svs
"""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide

from wsi_idc.data.pack import Pack
from wsi_idc.data.slide_cutter import LabelSettings
from wsi_idc.data.slide_pack import prepare_slides
from wsi_idc.runtime.resources import available_cores
from wsi_idc.slides.manifest import ManifestRow
from wsi_idc.slides.patches import choose_level
from wsi_idc.slides.tiling import SlideSettings

_MAX_THREADS = 4  # wsi-idc also reads a slide with 4 threads


def cut(slide: Path, out: Path, *, patch_px: int, mpp: float) -> float:
    """Cut all patches of a slide into the pack ``out``; return the time in seconds."""
    start = time.perf_counter()
    prepare_slides(
        [ManifestRow(slide, "slide", None)],
        out,
        settings=SlideSettings(min_tissue=0),
        labels=LabelSettings(unannotated="unknown"),
        patch_px=patch_px,
        mpp=mpp,
    )
    return time.perf_counter() - start


def read(slide: Path, pack: Pack) -> float:
    """Read each patch of ``pack`` once with OpenSlide; return the time in seconds."""
    handle = openslide.OpenSlide(slide)
    level0_mpp, mpp = pack.slides[0].mpp, pack.info.mpp
    level = choose_level([level0_mpp * scale for scale in handle.level_downsamples], mpp)
    side = round(pack.info.patch_px * mpp / (level0_mpp * handle.level_downsamples[level]))
    start = time.perf_counter()
    with ThreadPoolExecutor(min(available_cores(), _MAX_THREADS)) as threads:
        corners = pack.index[["x", "y"]].to_numpy().tolist()
        list(threads.map(lambda xy: _read_one(handle, xy, level, side), corners))
    return time.perf_counter() - start


def _read_one(handle: openslide.OpenSlide, xy: list[int], level: int, side: int) -> None:
    np.asarray(handle.read_region((xy[0], xy[1]), level, (side, side)))


def main() -> None:
    """Measure cutting and reading alternately; print both times and their ratio."""
    parser = argparse.ArgumentParser(description="Measure the speed of cutting a slide.")
    parser.add_argument("slide", type=Path)
    parser.add_argument("--patch-px", type=int, default=50)
    parser.add_argument("--mpp", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    ratios = []
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "a.h5"
            cutting = cut(given.slide, out, patch_px=given.patch_px, mpp=given.mpp)
            reading = read(given.slide, Pack(out))
        ratios.append(cutting / reading)
        print(
            f"cutting {cutting:.2f} s, reading {reading:.2f} s, ratio {ratios[-1]:.2f}", flush=True
        )
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
