"""Pack a patch tree: decode every patch, list the files that are left out, and write the pack."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.constants import PATCH_PX, POSSIBLE_MPP
from wsi_idc.core.csv_table import csv_text
from wsi_idc.core.errors import DataError
from wsi_idc.core.files import temporary_path, write_text
from wsi_idc.core.provenance import provenance
from wsi_idc.data.decode import decode_tree
from wsi_idc.data.decode_cache import DecodeCache
from wsi_idc.data.pack import (
    MAX_PATCH_PX,
    PackInfo,
    check_num_patches,
    has_slide_records,
    is_pack,
    write_pack,
)
from wsi_idc.data.patch_index import (
    index_tree,
    is_issue_table,
    issue_table,
    lost_patients,
    open_patch_store,
)
from wsi_idc.data.patch_store import FileIssue
from wsi_idc.data.pixels import channel_statistics

logger = logging.getLogger(__name__)

# The patch files do not state their resolution. A 40x scan at 1/16 of its size has about 4 um/px.
ASSUMED_MPP = 4.0
REJECTED_CSV = "rejected.csv"
FLAGGED_CSV = "flagged.csv"
EDGE = "edge patch"


@dataclass(frozen=True)
class PrepareReport:
    """Result of ``prepare``.

    Attributes:
        pack: The pack file that was written.
        num_patches, num_patients: Number of patches and of patients in the pack.
        num_idc, num_non_idc: Number of patches of each label.
        num_edge: Number of patches that were padded.
        info: Attributes of the pack.
        rejected: Files that are left out of the pack.
        flagged: Unusual files that are in the pack, and folders with copies of files.
        num_other_files: Number of ignored files. These files are hidden or not PNG.
        lost_patients: Sorted ids of patients that are in the patch tree but not in the pack.
    """

    pack: Path
    num_patches: int
    num_patients: int
    num_idc: int
    num_non_idc: int
    num_edge: int
    info: PackInfo
    rejected: tuple[FileIssue, ...]
    flagged: tuple[FileIssue, ...]
    num_other_files: int
    lost_patients: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that JSON can store."""
        return asdict(self) | {"pack": str(self.pack)}


def prepare(
    tree: Path,
    out: Path,
    *,
    patch_px: int = PATCH_PX,
    mpp: float | None = None,
    num_workers: int | None = None,
) -> PrepareReport:
    """Pack the patch tree ``tree`` into the file ``out``.

    After a stopped or killed call, a call with the same arguments resumes the work.

    Args:
        tree: Folder or zip with files PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png.
        out: Pack to write. Two tables are written to the same folder: ``rejected.csv`` lists the
            files that are left out, and ``flagged.csv`` lists the unusual files.
        patch_px: Side of a patch in px, at most 255. Smaller patches are padded, and larger patches
            are left out.
        mpp: Microns per pixel of the patches; None means 4.
        num_workers: Number of threads or processes that decode patches. None means the number of
            cores, at most 16.

    Raises:
        DataError: The tree has no readable patch, or a file of another program would be replaced.
        WorkerError: A worker process was killed, or many files vanished; run again to resume.
    """
    check_arguments(out, patch_px=patch_px, mpp=mpp)
    _check_tables(out)
    logger.info("reading the file names in %s", tree)
    with open_patch_store(tree) as store:
        index = index_tree(store, patch_px=patch_px)
        check_num_patches(len(index.table))  # decoding so many patches takes hours
        # A contiguous HDF5 dataset cannot change its size, so the pixels first go to a cache file.
        with temporary_path(cache_path(out), resumable=True) as partial:
            cache = DecodeCache(partial, patch_px)
            decoded = decode_tree(index, cache, num_workers=num_workers)
            table = decoded.table(index)
            info = _pack_info(table, decoded.histogram, patch_px=patch_px, mpp=mpp)
            padded = _padded_issues(table, patch_px=patch_px)
            rejected = (*index.rejected, *decoded.issues)
            flagged = (*index.flagged, *padded)
            # The pack is written last: if the pack exists, its two CSV files exist too.
            packs = [file.name for file in out.parent.glob("*.h5") if file != out and is_pack(file)]
            if packs and not out.exists() and out.with_name(REJECTED_CSV).exists():
                message = "%s and %s beside %s will describe the new pack"
                logger.warning(message, REJECTED_CSV, FLAGGED_CSV, ", ".join(sorted(packs)))
            for name, issues in ((REJECTED_CSV, rejected), (FLAGGED_CSV, flagged)):
                write_text(out.with_name(name), csv_text(issue_table(issues)))
            source = json.dumps(provenance(source=str(tree.resolve())))
            write_pack(out, table, cache.pixels(len(index.table)), info=info, provenance=source)
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
        lost_patients=lost_patients(index.store, rejected, set(table["patient"])),
    )


def cache_path(out: Path) -> Path:
    """Return the path for which ``temporary_path`` yields the cache file of decoded pixels."""
    return out.with_name(f"{out.name}.pixels")


def check_arguments(
    out: Path, *, patch_px: int, mpp: float | None, has_slides: bool = False
) -> None:
    """Check the arguments of ``prepare``, or of ``prepare_slides`` (``has_slides`` is True).

    Raises:
        DataError: ``patch_px`` or ``mpp`` is impossible, or ``out`` is a folder or a file that must
            not be replaced. A pack of slides and a pack of a patch tree do not replace each other.
    """
    if out.is_dir():
        raise DataError(f"{out} is a folder; give a file as --out, such as {out / 'idc.h5'}")
    if out.exists() and not is_pack(out):
        raise DataError(f"{out} exists and is not a pack; give another --out, or remove it")
    if out.exists() and has_slide_records(out) != has_slides:
        kind = "a patch tree" if has_slides else "slides"
        raise DataError(f"{out} is a pack of {kind}; give another --out, or remove the pack")
    if not 1 <= patch_px <= MAX_PATCH_PX:
        raise DataError(f"a patch of {patch_px} px cannot be packed; choose 1 to {MAX_PATCH_PX} px")
    finest, coarsest = POSSIBLE_MPP
    if mpp is not None and not finest <= mpp <= coarsest:
        raise DataError(f"{mpp} microns per pixel are impossible; give {finest:g} to {coarsest:g}")


def _check_tables(out: Path) -> None:
    """Raise DataError if ``rejected.csv`` or ``flagged.csv`` would replace another file."""
    for file in (out.with_name(REJECTED_CSV), out.with_name(FLAGGED_CSV)):
        if file.exists() and not is_issue_table(file):
            raise DataError(
                f"{file} was not written by prepare and would be replaced; rename it, or give "
                "an --out in another folder"
            )


def _pack_info(
    table: pd.DataFrame, histogram: NDArray[np.int64], *, patch_px: int, mpp: float | None
) -> PackInfo:
    mean, std = channel_statistics(histogram)
    # The fingerprint has no paths, so it does not change if the tree is moved.
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
    """Find patches smaller than ``patch_px`` that are not at the right or bottom edge of a slide.

    Args:
        table: One row per patch, with the columns slide or patient, x, y, height and width (px).
        patch_px: Side of a patch in px.

    Returns:
        True for each patch that is small and not at an edge, shape (N,).
    """
    slide = "slide" if "slide" in table else "patient"
    last = table.groupby(slide)[["x", "y"]].transform("max")
    beyond_width = (table["width"] < patch_px) & (table["x"] < last["x"])
    beyond_height = (table["height"] < patch_px) & (table["y"] < last["y"])
    return (beyond_width | beyond_height).to_numpy()


def _padded_issues(table: pd.DataFrame, *, patch_px: int) -> list[FileIssue]:
    reasons = np.where(is_small_inside(table, patch_px=patch_px), "small inside the slide", EDGE)
    small = table.assign(reason=reasons)[(table[["height", "width"]] < patch_px).any(axis=1)]
    rows = small[["path", "reason", "width", "height"]].itertuples(index=False, name=None)
    return [FileIssue(path, why, f"{w}x{h} px, padded white") for path, why, w, h in rows]
