"""From a patch tree to a pack: read every patch, set the bad ones aside, write the rest."""

import hashlib
import json
import logging
import math
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.config import PATCH_PX
from wsi_idc.data.decode import UnreadablePatchError, read_patch
from wsi_idc.data.index import Problem, TreeIndex, index_tree, problem_table
from wsi_idc.data.pack import MAX_PATCH_PX, PackInfo, write_pack
from wsi_idc.data.statistics import channel_histogram, channel_statistics
from wsi_idc.errors import DataError
from wsi_idc.files import scratch, write_text
from wsi_idc.hpc.cores import available_cores
from wsi_idc.progress import progress
from wsi_idc.provenance import provenance

logger = logging.getLogger(__name__)

# The files do not say it; 40x scans taken at 1/16 give about this.
ASSUMED_MPP = 4.0
REJECTED_CSV = "rejected.csv"
FLAGGED_CSV = "flagged.csv"
EDGE = "edge patch"
_FILES_PER_TASK = 128
_ROWS_PER_BLOCK = 4096
# Of the files left out, the log names this many and rejected.csv all.
_MAX_LOGGED = 20


@dataclass(frozen=True)
class PrepareReport:
    """What ``prepare`` found and did.

    Attributes:
        pack: The file that was written.
        num_patches, num_patients: What is in it.
        num_idc, num_non_idc: Its patches by label.
        num_edge: Its patches that were padded.
        info: The pack's attributes.
        rejected: Files left out.
        flagged: Files kept, and folders left out, that a user should know of.
        num_other_files: Files that are not PNG.
    """

    pack: Path
    num_patches: int
    num_patients: int
    num_idc: int
    num_non_idc: int
    num_edge: int
    info: PackInfo
    rejected: tuple[Problem, ...]
    flagged: tuple[Problem, ...]
    num_other_files: int

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self) | {"pack": str(self.pack)}


@dataclass
class _Decoded:
    """What decoding found: ``good`` for each row of the tree's table, the rest for good rows."""

    good: list[bool] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    crcs: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))

    def add(self, chunk: "_Chunk") -> None:
        """Add what the next chunk of paths holds."""
        for found in chunk.found:
            self.good.append(not isinstance(found, Problem))
            if not isinstance(found, Problem):
                self.sizes.append(found.size)
                self.crcs.append(found.crc)
                continue
            self.problems.append(found)
            if len(self.problems) <= _MAX_LOGGED:
                logger.warning("left out: %r: %s", found.path, found.detail)
        self.histogram += chunk.histogram


def prepare(
    tree: Path,
    out: Path,
    *,
    patch_px: int = PATCH_PX,
    mpp: float | None = None,
    num_workers: int | None = None,
) -> PrepareReport:
    """Pack the patch tree ``tree`` into ``out``, and write what was left out beside it.

    Args:
        tree: Folder of PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png.
        out: The pack to write; ``rejected.csv`` and ``flagged.csv`` go into its folder.
        patch_px: Side of a patch in px, at most 255; smaller ones are padded white, larger ones
            rejected.
        mpp: Microns per pixel; None assumes 4.
        num_workers: Threads that decode; None takes every core given.

    Raises:
        DataError: There is no tree, or no readable patch in it.
    """
    _check_arguments(out, patch_px=patch_px, mpp=mpp)
    logger.info("reading the names in %s", tree)
    index = index_tree(tree, patch_px=patch_px)
    # The decoded pixels go to a file of their own first: how many there are is known at the
    # end only, and a contiguous HDF5 data set cannot change its size.
    with scratch(out.with_name(f"{out.name}.pixels")) as raw:
        decoded = _decode_all(index, raw, patch_px=patch_px, num_workers=num_workers)
        table = _good_rows(index, decoded)
        info = _pack_info(table, decoded.histogram, patch_px=patch_px, mpp=mpp)
        padded = _small_patches(table, patch_px=patch_px)
        rejected = (*index.rejected, *decoded.problems)
        flagged = (*index.flagged, *padded)
        # The pack comes last: where it is, all is there.
        write_text(out.with_name(REJECTED_CSV), problem_table(rejected).to_csv(index=False))
        write_text(out.with_name(FLAGGED_CSV), problem_table(flagged).to_csv(index=False))
        write_pack(
            out,
            table,
            _blocks(raw, shape=(len(table), patch_px, patch_px, 3)),
            info=info,
            provenance=json.dumps(provenance(source=str(tree.resolve()))),
        )
    return PrepareReport(
        pack=out,
        num_patches=len(table),
        num_patients=table["patient"].nunique(),
        num_idc=int((table["label"] == 1).sum()),
        num_non_idc=int((table["label"] == 0).sum()),
        num_edge=len(padded),
        info=info,
        rejected=rejected,
        flagged=flagged,
        num_other_files=index.num_other_files,
    )


def _check_arguments(out: Path, *, patch_px: int, mpp: float | None) -> None:
    if out.is_dir():
        raise DataError(f"{out} is a folder; --out names the pack, such as {out / 'idc.h5'}")
    if not 1 <= patch_px <= MAX_PATCH_PX:
        raise DataError(f"a patch of {patch_px} px cannot be packed; choose 1 to {MAX_PATCH_PX} px")
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise DataError(f"{mpp} microns per pixel make no sense; give a number above 0")


def _decode_all(index: TreeIndex, raw: Path, *, patch_px: int, num_workers: int | None) -> _Decoded:
    """Decode every file of the table in order, and append the good patches to the file ``raw``."""
    paths = index.table["path"].tolist()
    result = _Decoded()
    with (
        raw.open("wb") as file,
        closing(_read_chunks(index.root, paths, patch_px, num_workers)) as chunks,
        progress(len(paths), what="packing") as bar,
    ):
        for chunk in chunks:
            file.write(chunk.pixels.data)
            result.add(chunk)
            bar.update(len(chunk.found))
    return result


@dataclass(frozen=True)
class _Found:
    size: tuple[int, int]  # height, width before padding
    crc: int


@dataclass(frozen=True)
class _Chunk:
    found: list[_Found | Problem]  # one a path
    pixels: NDArray[np.uint8]  # the good ones, padded, shape (n, patch_px, patch_px, 3)
    histogram: NDArray[np.int64]  # of pixels


def _read_chunks(
    root: Path, paths: list[str], patch_px: int, num_workers: int | None
) -> Generator[_Chunk, None, None]:
    """Yield what the paths hold, a chunk at a time, in order, a bounded number of them ahead.

    Threads do, since OpenCV decodes without the interpreter lock.
    """
    workers = num_workers or available_cores()
    chunks = [paths[at : at + _FILES_PER_TASK] for at in range(0, len(paths), _FILES_PER_TASK)]
    pool = ThreadPoolExecutor(workers)
    try:
        ahead: deque[Future[_Chunk]] = deque()
        waiting = iter(chunks)
        for _ in chunks:
            while len(ahead) < 2 * workers and (later := next(waiting, None)) is not None:
                ahead.append(pool.submit(_read_chunk, root, later, patch_px))
            yield ahead.popleft().result()
    finally:
        # After Ctrl-C nobody waits for what lies ahead.
        pool.shutdown(cancel_futures=True)


def _read_chunk(root: Path, paths: list[str], patch_px: int) -> _Chunk:
    padded = np.full((len(paths), patch_px, patch_px, 3), 255, np.uint8)
    found: list[_Found | Problem] = []
    num_good = 0
    for path in paths:
        try:
            pixels, crc = read_patch(f"{root}/{path}", patch_px=patch_px)
        except UnreadablePatchError as error:
            found.append(Problem(path, "unreadable", str(error)))
            continue
        height, width, _ = pixels.shape
        padded[num_good, :height, :width] = pixels
        found.append(_Found((height, width), crc))
        num_good += 1
    padded = padded[:num_good]
    return _Chunk(found, padded, channel_histogram(padded))


def _good_rows(index: TreeIndex, decoded: _Decoded) -> pd.DataFrame:
    """Return the table's rows that could be decoded, with their sizes and checksums."""
    table = index.table[decoded.good].reset_index(drop=True)
    if table.empty:
        first = decoded.problems[0]
        raise DataError(
            f"{index.root}: no patch could be read; the first, {first.path}: {first.detail}"
        )
    heights, widths = zip(*decoded.sizes, strict=True)
    return table.assign(height=heights, width=widths, crc=decoded.crcs)


def _pack_info(
    table: pd.DataFrame, histogram: NDArray[np.int64], *, patch_px: int, mpp: float | None
) -> PackInfo:
    mean, std = channel_statistics(histogram)
    # What a patch is and holds, not its path: the same data from another folder is the same.
    columns = (table[name] for name in ("patient", "x", "y", "label", "crc"))
    digest = hashlib.sha256(f"{patch_px}\n".encode())
    for patient, x, y, label, crc in zip(*columns, strict=True):
        digest.update(f"{patient}\t{x}\t{y}\t{label}\t{crc:08x}\n".encode())
    return PackInfo(
        mean=mean,
        std=std,
        patch_px=patch_px,
        mpp=ASSUMED_MPP if mpp is None else mpp,
        mpp_source="assumed" if mpp is None else "given",
        source_fingerprint=digest.hexdigest(),
    )


def is_small_inside(table: pd.DataFrame, *, patch_px: int) -> NDArray[np.bool_]:
    """Return which patches are small although others of the patient lie beyond the short side.

    Args:
        table: One row a patch, with columns patient, x, y, height, width.
        patch_px: Side of a patch in px.
    """
    last = table.groupby("patient")[["x", "y"]].transform("max")
    beyond_width = (table["width"] < patch_px) & (table["x"] < last["x"])
    beyond_height = (table["height"] < patch_px) & (table["y"] < last["y"])
    return (beyond_width | beyond_height).to_numpy()


def _small_patches(table: pd.DataFrame, *, patch_px: int) -> tuple[Problem, ...]:
    """Flag each patch that was padded; one that others lie beyond is at no edge of the slide."""
    inside = is_small_inside(table, patch_px=patch_px)
    is_small = (table["height"] < patch_px) | (table["width"] < patch_px)
    small = table[is_small]
    return tuple(
        Problem(
            path, "small inside the slide" if odd else EDGE, f"{width}x{height} px, padded white"
        )
        for path, width, height, odd in zip(
            small["path"], small["width"], small["height"], inside[is_small], strict=True
        )
    )


def _blocks(raw: Path, *, shape: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
    """Yield the patches of the file ``raw`` a block at a time."""
    patches = np.memmap(raw, np.uint8, mode="r", shape=shape)
    for start in range(0, len(patches), _ROWS_PER_BLOCK):
        yield patches[start : start + _ROWS_PER_BLOCK]
