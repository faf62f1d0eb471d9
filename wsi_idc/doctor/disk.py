"""Checks of the disks: the folder for results, and the scratch folder of the machine."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_idc.core.locks import supports_locks
from wsi_idc.core.scratch import SCRATCH_ENV
from wsi_idc.data.pack import Pack, PackInfo, write_pack
from wsi_idc.doctor.doctor import PROBLEM, CheckResult, make_result

_MB, _GB = 10**6, 10**9
_BLOCK, _NUM_BLOCKS = 8 * 2**20, 8
_MIN_FREE = 2 * _GB
_SLOW_MB_PER_SECOND = 20
_PREFIX = ".wsi-idc-doctor-"


def room(folder: Path) -> Iterator[CheckResult]:
    """Report the file system and the free space of a folder; the folder need not exist yet."""
    usage = shutil.disk_usage(_existing(folder))
    free, total = usage.free / _GB, usage.total / _GB
    value = f"{folder.absolute()} ({file_system(folder)}), {free:.1f} of {total:.1f} GB free"
    advice = "free some space, or give another --out: a map takes a few MB, a run takes up to 1 GB"
    yield make_result("output disk", value, usage.free < _MIN_FREE, advice, PROBLEM)


def writing(folder: Path) -> Iterator[CheckResult]:
    """Measure the writing speed: write 64 MB of incompressible data to a temporary file."""
    block = np.random.default_rng(0).bytes(_BLOCK)
    try:
        with tempfile.NamedTemporaryFile(dir=_existing(folder), prefix=_PREFIX) as file:
            started = time.perf_counter()
            for _ in range(_NUM_BLOCKS):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - started
    except OSError as error:
        value = f"not possible ({error.strerror})"
        yield CheckResult("writing", value, PROBLEM, "give another folder as --out")
        return
    speed = _BLOCK * _NUM_BLOCKS / _MB / seconds
    advice = "writing maps to this disk is slow; try another disk"
    yield make_result(
        "writing", f"{speed:.0f} MB/s with fsync", speed < _SLOW_MB_PER_SECOND, advice
    )


def locks(folder: Path) -> Iterator[CheckResult]:
    """Check that the program can lock files in a folder."""
    value = "work" if supports_locks(_existing(folder)) else "do not work in this folder"
    advice = "run only one training per folder and one process per search, or give another --out"
    yield make_result("file locks", value, value != "work", advice, PROBLEM)


def hdf5(folder: Path) -> Iterator[CheckResult]:
    """Check that a pack can be written into a folder and read again; the pack has one patch."""
    info = PackInfo((0.5,) * 3, (0.5,) * 3, 1, 1.0, "assumed", "0" * 64)
    row = {"path": "", "patient": "0", "x": 0, "y": 0, "label": 0, "height": 1, "width": 1}
    pixels = np.zeros((1, 1, 1, 3), np.uint8)
    with tempfile.TemporaryDirectory(dir=_existing(folder), prefix=_PREFIX) as name:
        path = Path(name, "smallest.h5")
        write_pack(path, pd.DataFrame([row]), [pixels], info=info, provenance="{}")
        assert len(Pack(path)) == 1
    yield CheckResult("HDF5 files", "can be written and read")


def scratch() -> Iterator[CheckResult]:
    """Report the scratch folder for copies of packs; check that the folder is writable."""
    scratch_folder = os.environ.get(SCRATCH_ENV)
    if not scratch_folder:
        yield CheckResult("scratch", f"{SCRATCH_ENV} is not set: packs are read without a copy")
        return
    folder = _existing(Path(scratch_folder))
    free = shutil.disk_usage(folder).free / _GB
    value = f"{scratch_folder} ({file_system(folder)}), {free:.1f} GB free"
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield CheckResult("scratch", value)
    except OSError as error:
        advice = f"set {SCRATCH_ENV} to a folder that can be written, or unset it"
        value += f", cannot be written ({error.strerror})"
        yield CheckResult("scratch", value, PROBLEM, advice)


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the type of the file system of a path; the path need not exist yet."""
    kinds = {}
    for line in mounts.read_text().splitlines():
        left, _, right = line.partition(" - ")
        # In this file, a space in a path is written as an octal number.
        point = Path(left.split(" ")[4].encode().decode("unicode_escape"))
        kinds[point] = right.split(" ")[0]
    real = _existing(path).resolve()
    return next((kinds[at] for at in (real, *real.parents) if at in kinds), "of unknown type")


def _existing(folder: Path) -> Path:
    """Return the folder if it exists, else the nearest parent folder that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
