"""From a patch tree to a pack: read every patch, set the bad ones aside, write the rest."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.constants import PATCH_PX, POSSIBLE_MPP
from wsi_idc.core.errors import DataError
from wsi_idc.core.files import is_being_written, remove_partial, resumable_path, write_text
from wsi_idc.core.provenance import provenance
from wsi_idc.data.decode import Decoded, decode_tree
from wsi_idc.data.decode_cache import DecodeCache
from wsi_idc.data.normalization import channel_statistics
from wsi_idc.data.pack import MAX_PATCH_PX, PackInfo, is_pack
from wsi_idc.data.pack_writer import write_pack
from wsi_idc.data.patch_index import (
    TreeIndex,
    index_tree,
    is_problem_table,
    open_patch_store,
    problem_table,
)
from wsi_idc.data.patch_store import FileIssue

logger = logging.getLogger(__name__)

# The files do not say it; 40x scans taken at 1/16 give about this.
ASSUMED_MPP = 4.0
REJECTED_CSV = "rejected.csv"
FLAGGED_CSV = "flagged.csv"
EDGE = "edge patch"


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
    rejected: tuple[FileIssue, ...]
    flagged: tuple[FileIssue, ...]
    num_other_files: int

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self) | {"pack": str(self.pack)}


def prepare(
    tree: Path,
    out: Path,
    *,
    patch_px: int = PATCH_PX,
    mpp: float | None = None,
    num_workers: int | None = None,
) -> PrepareReport:
    """Pack the patch tree ``tree`` into ``out``, and write what was left out beside it.

    Stopped or killed, it goes on where it was when called again.

    Args:
        tree: Folder, or zip, of PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png.
        out: The pack to write; ``rejected.csv`` and ``flagged.csv`` go into its folder.
        patch_px: Side of a patch in px, at most 255; smaller ones are padded white, larger ones
            rejected.
        mpp: Microns per pixel; None assumes 4.
        num_workers: Threads, or for a large folder processes, that decode; None takes every core
            given.

    Raises:
        DataError: There is no tree, or no readable patch in it, or a file of another one would be
            written over.
        WorkerError: A process that decodes was killed.
    """
    _check_arguments(out, patch_px=patch_px, mpp=mpp)
    logger.info("reading the names in %s", tree)
    with open_patch_store(tree) as origin:
        index = index_tree(origin, patch_px=patch_px)
        # The decoded pixels go to a file of their own first: how many there are is known at the
        # end only, and a contiguous HDF5 data set cannot change its size.
        with resumable_path(_scratch_of(out)) as raw:
            file = DecodeCache(raw, patch_px)
            decoded = decode_tree(index, file, num_workers=num_workers)
            table = _good_rows(index, decoded)
            info = _pack_info(table, decoded.histogram, patch_px=patch_px, mpp=mpp)
            padded = _small_patches(table, patch_px=patch_px)
            rejected = (*index.rejected, *decoded.problems)
            flagged = (*index.flagged, *padded)
            # The pack comes last: where it is, all is there.
            _write_lists(out, {REJECTED_CSV: rejected, FLAGGED_CSV: flagged})
            source = json.dumps(provenance(source=str(tree.resolve())))
            pixels = file.pixels(len(index.table))
            write_pack(out, table, pixels, info=info, provenance=source)
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


def _write_lists(out: Path, lists: Mapping[str, Iterable[FileIssue]]) -> None:
    """Write what was left out and what is odd beside the pack."""
    others = [file.name for file in out.parent.glob("*.h5") if file != out and is_pack(file)]
    if others and not out.exists() and out.with_name(REJECTED_CSV).exists():
        logger.warning(
            "%s and %s beside %s are of this pack from now on", *lists, ", ".join(sorted(others))
        )
    for name, problems in lists.items():
        write_text(out.with_name(name), problem_table(problems).to_csv(index=False))


def remove_partial_pack(pack: Path) -> None:
    """Remove what a ``prepare`` left that was killed when it had just put ``pack`` there."""
    remove_partial(_scratch_of(pack))


def is_being_prepared(pack: Path) -> bool:
    """Return whether another process is making ``pack``."""
    return is_being_written(_scratch_of(pack))


def _scratch_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.pixels")


def _check_arguments(out: Path, *, patch_px: int, mpp: float | None) -> None:
    if out.is_dir():
        raise DataError(f"{out} is a folder; --out names the pack, such as {out / 'idc.h5'}")
    if out.exists() and not is_pack(out):
        raise DataError(f"{out} is there and is no pack; give another --out, or remove it")
    for file in (out.with_name(REJECTED_CSV), out.with_name(FLAGGED_CSV)):
        if file.exists() and not is_problem_table(file):
            raise DataError(
                f"{file} is of something else and would be lost; rename it, or give an --out in "
                "another folder"
            )
    if not 1 <= patch_px <= MAX_PATCH_PX:
        raise DataError(f"a patch of {patch_px} px cannot be packed; choose 1 to {MAX_PATCH_PX} px")
    finest, coarsest = POSSIBLE_MPP
    if mpp is not None and not finest <= mpp <= coarsest:
        raise DataError(f"{mpp} microns per pixel make no sense; give {finest:g} to {coarsest:g}")


def _good_rows(index: TreeIndex, decoded: Decoded) -> pd.DataFrame:
    """Return the table's rows that could be decoded, with their sizes and checksums."""
    table = index.table.assign(path=decoded.paths)[decoded.good].reset_index(drop=True)
    if table.empty:
        first = decoded.problems[0]
        raise DataError(
            f"{index.origin.path}: no patch could be read; the first, {first.path}: {first.detail}"
        )
    sizes = np.array(decoded.sizes).reshape(-1, 2)
    return table.assign(height=sizes[:, 0], width=sizes[:, 1], crc=np.array(decoded.crcs))


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


def _small_patches(table: pd.DataFrame, *, patch_px: int) -> tuple[FileIssue, ...]:
    """Flag each patch that was padded; one that others lie beyond is at no edge of the slide."""
    inside = is_small_inside(table, patch_px=patch_px)
    is_small = (table["height"] < patch_px) | (table["width"] < patch_px)
    small = table[is_small]
    return tuple(
        FileIssue(
            path, "small inside the slide" if odd else EDGE, f"{width}x{height} px, padded white"
        )
        for path, width, height, odd in zip(
            small["path"], small["width"], small["height"], inside[is_small], strict=True
        )
    )
