"""Pack slides: cut patches from every slide, label the patches, and write a pack of version 2."""

import hashlib
import json
import logging
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.csv_table import csv_text
from wsi_idc.core.errors import DataError, DiskFullError, SlideError, WsiIdcError
from wsi_idc.core.files import starts_with, write_text
from wsi_idc.core.locks import locked
from wsi_idc.core.progress import progress
from wsi_idc.core.provenance import provenance
from wsi_idc.core.text import count, shorten_list
from wsi_idc.data.pack import MAX_PATCHES, PackInfo, write_pack
from wsi_idc.data.pixels import channel_statistics
from wsi_idc.data.prepare import check_arguments
from wsi_idc.data.slide_cutter import COLUMNS, CutSlide, LabelSettings, SlideCutter
from wsi_idc.runtime.prefetch import prefetch
from wsi_idc.runtime.resources import available_cores
from wsi_idc.slides.annotations import Annotation, check_classes
from wsi_idc.slides.labels import choose_unannotated
from wsi_idc.slides.manifest import ManifestRow
from wsi_idc.slides.resolution import mpp_caution
from wsi_idc.slides.tiling import SlideSettings

logger = logging.getLogger(__name__)

RESAMPLED = "resampled"  # origin of the mpp of patches that were cut from slides
_BLOCK_PATCHES = 4096
_CORES_PER_SLIDE = 4
_MAX_ANNOTATION_FILES = 4  # files read at once; a file of 5 million points takes about 1 GB
_MIN_SLIDES_AT_ONCE = 2  # while one slide is read, the tissue of the next slide is found


@dataclass(frozen=True)
class SlidePackReport:
    """Result of ``prepare_slides``.

    Attributes:
        pack: The pack file that was written.
        slides: One row per slide, with the columns ``COLUMNS``.
        table: CSV file with the table ``slides``.
        pictures: Folder with a picture of each slide: outlines, tissue and labelled patches.
        unannotated: Label of tissue outside all outlines.
        info: Attributes of the pack.
        set_aside: Slide files that are not in the pack: a dict from slide file to reason.
        num_kept: Number of slides that an earlier call has cut.
        cautions: Dict from slide file to warning. A slide file is in this dict if the user gave an
            mpp that contradicts the slide file.
        stale_pictures: Pictures in the folder ``pictures`` of slides that were not given.
    """

    pack: Path
    slides: pd.DataFrame
    table: Path
    pictures: Path
    unannotated: str
    info: PackInfo
    set_aside: dict[str, str]
    num_kept: int
    cautions: dict[str, str]
    stale_pictures: list[Path]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that JSON can store."""
        paths: dict[str, Any] = {
            name: str(getattr(self, name)) for name in ("pack", "table", "pictures")
        }
        paths["stale_pictures"] = list(map(str, self.stale_pictures))
        slides = json.loads(self.slides.to_json(orient="records"))
        return vars(self) | paths | {"slides": slides, "info": asdict(self.info)}


def prepare_slides(
    rows: Sequence[ManifestRow],
    out: Path,
    *,
    settings: SlideSettings,
    labels: LabelSettings,
    patch_px: int,
    mpp: float,
) -> SlidePackReport:
    """Cut patches from slides, label the patches, and write a pack of version 2.

    A slide that cannot be used is left out, and the other slides are packed. The patches do not
    overlap. After a stopped or killed call, a call with the same arguments does not cut again the
    slides that are complete.

    Args:
        rows: Slides, from a manifest or a list of files.
        out: Pack ``NAME.h5`` to write. The table ``NAME_slides.csv`` and the folder of pictures
            ``NAME_slides`` are written to the same folder.
        settings: Settings for cutting patches.
        labels: Settings for labelling patches.
        patch_px: Side of a patch in px.
        mpp: Microns per px of the patches.

    Raises:
        DataError: No slide can be packed, the user must choose the label of unannotated tissue, or
            a file of another program would be replaced.
        BusyError: Another process is writing the pack.
        DiskFullError: The disk is full.
    """
    check_arguments(out, patch_px=patch_px, mpp=mpp, has_slides=True)
    csv = out.with_name(f"{out.stem}_slides.csv")
    if csv.exists() and not starts_with(csv, ",".join(COLUMNS[:4]).encode()):
        raise DataError(f"{csv} was not written by prepare and would be lost; give another --out")
    cache = out.with_name(f".{out.name}.slides.partial")
    pictures = out.with_name(f"{out.stem}_slides")
    ordered = sorted(rows, key=lambda row: (row.patient, row.slide_name))
    set_aside: dict[Path, str] = {}
    with locked(cache / "lock", what=out), _removed_unless_stopped(cache):
        cutter = SlideCutter(cache, pictures, settings, labels, patch_px, mpp)
        unannotated = _choose_unannotated(cutter, ordered, set_aside)
        cutter = replace(cutter, labels=replace(labels, unannotated=unannotated))
        cuts = list(_cut_all(cutter, ordered, set_aside))
        _check_any_left(ordered, set_aside)
        table = _table(ordered, cuts, set_aside)
        write_text(csv, csv_text(table, float_format="%.6g"))
        info = _write(cutter, cuts, out)
    return SlidePackReport(
        pack=out,
        slides=table,
        table=csv,
        pictures=pictures,
        unannotated=unannotated,
        info=info,
        set_aside={str(path): reason for path, reason in set_aside.items()},
        num_kept=sum(cut.was_complete for cut in cuts),
        cautions={
            cut.slide.path: caution
            for cut in cuts
            if (caution := mpp_caution(cut.slide.mpp, cut.slide.mpp_source))
        },
        stale_pictures=sorted(
            set(pictures.glob("*/*.png")) - {cutter.picture(row) for row in ordered}
        ),
    )


@contextmanager
def _removed_unless_stopped(cache: Path) -> Iterator[None]:
    """Context manager: remove the cache folder when the block ends.

    There are two exceptions. After Ctrl-C, the folder is kept. After a ``WsiIdcError``, the folder
    is kept if it had complete slides before the block.
    """
    had_slides, keep = any(cache.glob("*.npz")), False
    try:
        yield
    except KeyboardInterrupt:
        keep = True
        slides = count(len(list(cache.glob("*.npz"))), "complete slide")
        logger.info("stopped with %s; the same command keeps them and cuts the others", slides)
        raise
    except WsiIdcError:
        keep = had_slides
        raise
    finally:
        if not keep:
            shutil.rmtree(cache)


def _check_any_left(rows: Sequence[ManifestRow], set_aside: dict[Path, str]) -> None:
    if len(set_aside) == len(rows):
        first = next(iter(set_aside.values()))
        raise DataError(f"none of {len(rows)} slides could be packed; the first error: {first}")


def _set_aside(row: ManifestRow, error: Exception, set_aside: dict[Path, str]) -> None:
    """Record that ``error`` is the reason why a slide is not packed.

    If the disk is full, ``error`` is raised.
    """
    if isinstance(error, DiskFullError):
        raise error
    set_aside[row.slide] = str(error)
    logger.info("%s is left out", row.slide)  # the command lists the reasons at the end


def _choose_unannotated(
    cutter: SlideCutter, rows: Sequence[ManifestRow], set_aside: dict[Path, str]
) -> str:
    """Read the annotations of all slides, and return the label of unannotated tissue.

    This function is called before the first slide is cut, so that wrong files are found early.
    """

    def read(row: ManifestRow) -> tuple[list[Annotation], Exception | None]:
        try:
            file = cutter.annotation_file(row)
            if file is not None and slides_of[file.resolve()] > 1:
                raise SlideError(
                    f"{row.slide}: {file} is also the file of another slide; give each slide its "
                    "own file in the column annotations of the manifest"
                )
            with cutter.open(row) as slide:
                annotations = cutter.annotations(row, slide)
            check_classes(annotations, cutter.labels.classes, file)
        except (WsiIdcError, OSError) as error:
            return [], error
        return annotations, None

    slides_of = _count_slides(cutter, rows)
    of_class: dict[str, Annotation] = {}
    results = prefetch(read, rows, num=min(available_cores(), _MAX_ANNOTATION_FILES))
    for row, (annotations, error) in zip(rows, results, strict=True):
        of_class |= {annotation.name: annotation for annotation in annotations}
        if error is not None:
            _set_aside(row, error, set_aside)
    _check_any_left(rows, set_aside)
    labels = cutter.labels
    chosen = choose_unannotated(list(of_class.values()), labels.classes, labels.unannotated)
    _warn_without_file(cutter, [row for row in rows if row.slide not in set_aside], chosen)
    return chosen


def _count_slides(cutter: SlideCutter, rows: Sequence[ManifestRow]) -> Counter[Path]:
    """Count the slides of each annotation file.

    Slides of the same name in two folders can have the same annotation file.
    """
    counts: Counter[Path] = Counter()
    for row in rows:
        with suppress(WsiIdcError, OSError):  # the error is raised again when the file is read
            if (file := cutter.annotation_file(row)) is not None:
                counts[file.resolve()] += 1
    return counts


def _warn_without_file(cutter: SlideCutter, rows: Sequence[ManifestRow], chosen: str) -> None:
    """Log the slides without an annotation file, because the name of a file may be misspelled.

    If no slide has an annotation file, nothing is logged.
    """
    missing = [row.slide_name for row in rows if cutter.annotation_file(row) is None]
    if missing and len(missing) < len(rows):
        logger.warning(
            "%d of %d slides have no annotation file, so all their tissue is %s: %s",
            *(len(missing), len(rows), "left out" if chosen == "skip" else chosen),
            shorten_list(missing),
        )


def _cut_all(
    cutter: SlideCutter, rows: Sequence[ManifestRow], set_aside: dict[Path, str]
) -> Iterator[CutSlide]:
    """Cut all slides that are not in ``set_aside``, several slides at the same time."""
    todo = [row for row in rows if row.slide not in set_aside]
    stop = threading.Event()

    def cut(row: ManifestRow) -> CutSlide | Exception:
        try:
            return cutter.cut(row, is_stopped=stop.is_set)
        except (WsiIdcError, OSError) as error:
            return error

    num_patches = 0
    num_at_once = max(_MIN_SLIDES_AT_ONCE, available_cores() // _CORES_PER_SLIDE)
    with progress(len(todo), what="cutting", unit="slide") as bar:
        results = prefetch(cut, todo, num=num_at_once)
        try:
            for row in todo:
                result = next(results)
                bar.update(1)
                if isinstance(result, Exception):
                    _set_aside(row, result, set_aside)
                    continue
                num_patches += len(result.index)
                if num_patches > MAX_PATCHES:
                    raise DataError(f"more than {MAX_PATCHES} patches; make several packs")
                yield result
        finally:
            stop.set()  # ends the cutting of slides in the threads


def _table(
    rows: Sequence[ManifestRow], cuts: Sequence[CutSlide], set_aside: dict[Path, str]
) -> pd.DataFrame:
    """Return the table of slides.

    The row of a slide that is left out has only the patient, the slide, the file and the reason.
    """
    counts_of = {(cut.patient, cut.slide.name): cut.counts for cut in cuts}
    records = []
    for row in rows:
        names = {"patient": row.patient, "slide": row.slide_name, "file": str(row.slide)}
        failed = names | {"reason": set_aside.get(row.slide, "")}
        records.append(counts_of.get((row.patient, row.slide_name), failed))
    table = pd.DataFrame(records, columns=list(COLUMNS))
    counts = ["patches", "idc", "non_idc", "unknown", "left_out"]
    return table.astype(dict.fromkeys(counts, "Int64"))


def _write(cutter: SlideCutter, cuts: Sequence[CutSlide], out: Path) -> PackInfo:
    """Write the pack with the patches of all slides; return the attributes of the pack."""
    histogram = np.zeros((3, 256), np.int64)
    digest = hashlib.sha256(f"{cutter.patch_px}\n".encode())
    parts = []
    for code, cut in enumerate(cuts):
        _, slide_histogram, crc = cut.details()
        histogram += slide_histogram
        parts.append(cut.index.assign(patient=cut.patient, slide=code))
        # The fingerprint has no paths, so it does not change if the slides are moved.
        digest.update(f"{cut.patient}\t{cut.slide.name}\t{crc:08x}\n".encode())
        digest.update(cut.index[["x", "y", "label"]].to_numpy(np.int32).tobytes())
    mean, std = channel_statistics(histogram)
    info = PackInfo(
        mean=mean,
        std=std,
        patch_px=cutter.patch_px,
        mpp=cutter.mpp,
        mpp_source=RESAMPLED,
        source_fingerprint=digest.hexdigest(),
    )
    labels = {name: str(value) for name, value in vars(cutter.labels).items()}
    settings = {name: str(value) for name, value in vars(cutter.settings).items()}
    write_pack(
        out,
        pd.concat(parts, ignore_index=True),
        _blocks(cuts),
        info=info,
        provenance=json.dumps(provenance(source="slides", labels=labels, settings=settings)),
        slides=[cut.slide for cut in cuts],
        overviews=(cut.details()[0] for cut in cuts),
    )
    return info


def _blocks(cuts: Sequence[CutSlide]) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of the patches of all slides, in blocks of patches."""
    for cut in cuts:
        pixels = cut.pixels()
        for start in range(0, len(pixels), _BLOCK_PATCHES):
            yield pixels[start : start + _BLOCK_PATCHES]
