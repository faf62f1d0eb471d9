"""The disks: where results go, and node-local scratch."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_idc.core.locks import supports_locks
from wsi_idc.data.pack import Pack, PackInfo
from wsi_idc.data.pack_writer import write_pack
from wsi_idc.data.staging import SCRATCH_ENV
from wsi_idc.doctor.check_result import NOTE, PROBLEM, CheckResult

_MB, _GB = 10**6, 10**9
_BLOCK, _NUM_BLOCKS = 8 * 2**20, 8
_LITTLE_ROOM = 2 * _GB
_SLOW_MB_A_SECOND = 20
_PREFIX = ".wsi-idc-doctor-"


def room(folder: Path) -> Iterator[CheckResult]:
    """Find the file system of a folder, which need not exist yet, and how much it holds."""
    usage = shutil.disk_usage(_existing(folder))
    value = (
        f"{folder.absolute()} ({file_system(folder)}), {usage.free / _GB:.1f} of "
        f"{usage.total / _GB:.1f} GB free"
    )
    if usage.free < _LITTLE_ROOM:
        advice = "free some space, or give another --out: a map has a few MB, a run up to 1 GB"
        yield CheckResult("output disk", value, PROBLEM, advice)
    else:
        yield CheckResult("output disk", value)


def writing(folder: Path) -> Iterator[CheckResult]:
    """Write 64 MB that no disk can shorten, and remove them."""
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
        yield CheckResult(
            "writing", f"not possible ({error.strerror})", PROBLEM, "give another folder as --out"
        )
        return
    speed = _BLOCK * _NUM_BLOCKS / _MB / seconds
    value = f"{speed:.0f} MB/s with fsync"
    if speed < _SLOW_MB_A_SECOND:
        yield CheckResult("writing", value, NOTE, "maps are written slowly there; try another disk")
    else:
        yield CheckResult("writing", value)


def locks(folder: Path) -> Iterator[CheckResult]:
    """Lock a file of our own."""
    with tempfile.NamedTemporaryFile(dir=_existing(folder), prefix=_PREFIX) as file:
        if supports_locks(file.fileno()):
            yield CheckResult("file locks", "work")
        else:
            yield CheckResult(
                "file locks",
                "do not work there",
                PROBLEM,
                "run no two trainings in one folder and one process a search, or give another "
                "disk as --out",
            )


def hdf5(folder: Path) -> Iterator[CheckResult]:
    """Make the smallest pack, and read it."""
    info = PackInfo((0.5,) * 3, (0.5,) * 3, 1, 1.0, "assumed", "0" * 64)
    row = {"path": "", "patient": "0", "x": 0, "y": 0, "label": 0, "height": 1, "width": 1}
    pixels = np.zeros((1, 1, 1, 3), np.uint8)
    with tempfile.TemporaryDirectory(dir=_existing(folder), prefix=_PREFIX) as inside:
        path = Path(inside, "smallest.h5")
        write_pack(path, pd.DataFrame([row]), [pixels], info=info, provenance="{}")
        num_patches = len(Pack(path))
    assert num_patches == 1
    yield CheckResult("HDF5 files", "can be written and read")


def scratch() -> Iterator[CheckResult]:
    """Find the folder for copies of packs."""
    given = os.environ.get(SCRATCH_ENV)
    if not given:
        yield CheckResult("scratch", f"{SCRATCH_ENV} is not set: data are read where they are")
        return
    folder = _existing(Path(given))
    usage = shutil.disk_usage(folder)
    value = f"{given} ({file_system(folder)}), {usage.free / _GB:.1f} GB free"
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield CheckResult("scratch", value)
    except OSError as error:
        value += f", cannot be written ({error.strerror})"
        advice = f"set {SCRATCH_ENV} to a folder that can be written, or unset it"
        yield CheckResult("scratch", value, PROBLEM, advice)


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the type of the file system that a path, which need not exist yet, lies on."""
    real = _existing(path).resolve()
    found = (-1, "of unknown type")
    for line in mounts.read_text().splitlines():
        left, _, right = line.partition(" - ")
        # Blanks in names are written as octal numbers.
        point = Path(left.split(" ")[4].encode().decode("unicode_escape"))
        if real.is_relative_to(point) and len(point.parts) >= found[0]:
            found = len(point.parts), right.split(" ")[0]
    return found[1]


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder
