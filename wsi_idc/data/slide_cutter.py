"""Cut one slide into labelled patches, and write the pixels to a file in a cache folder."""

import hashlib
import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.errors import SlideError
from wsi_idc.core.files import atomic_write, full_disk_as_error, write_bytes
from wsi_idc.data.packed_slides import Overview, PackedSlide
from wsi_idc.data.pixels import channel_histogram
from wsi_idc.data.slide_picture import slide_picture
from wsi_idc.slides.annotations import (
    IDC,
    IGNORE,
    NON_IDC,
    UNANNOTATED,
    Annotation,
    class_table,
    find_annotation_file,
    read_annotations,
)
from wsi_idc.slides.labels import LEFT_OUT, SHARES, UNKNOWN, label_patches
from wsi_idc.slides.manifest import ManifestRow
from wsi_idc.slides.patches import SlidePatches
from wsi_idc.slides.slide import Slide, open_slide
from wsi_idc.slides.tiling import SlideSettings, TiledSlide, tile_slide

_FORMAT = 1
_BATCH_SIZE = 256
_AREAS = {
    IDC: "idc_mm2",
    NON_IDC: "non_idc_mm2",
    IGNORE: "ignored_mm2",
    UNANNOTATED: "unannotated_mm2",
}
# Columns of the table of slides. Areas are sums over all patches with tissue. Each point belongs to
# one class.
COLUMNS = (
    *("patient", "slide", "file", "annotations", "mpp"),
    *("patches", "idc", "non_idc", "unknown", "left_out", *_AREAS.values(), "reason"),
)


@dataclass(frozen=True)
class LabelSettings:
    """Settings for labelling patches by annotations.

    Attributes:
        folder: Folder of the annotation files. The annotation file of a slide has the name of the
            slide. A manifest can name other files.
        classes: Result of ``class_table``: the target (such as "IDC") of each annotation class.
        min_share: Smallest share of the area of a patch that a target must cover. If a target
            covers this share, the patch gets the label of the target.
        unannotated: Label of tissue outside all outlines: "non-IDC", "unknown" or "skip". None
            means that the user made no choice.
        frame: Origin of the coordinates in annotation files, as in ``read_annotations``: "auto",
            "level0" or "qupath".
    """

    folder: Path | None = None
    classes: Mapping[str, str] = field(default_factory=class_table)
    min_share: float = 0.5
    unannotated: str | None = None
    frame: str = "auto"


@dataclass(frozen=True)
class CutSlide:
    """Patches of a slide.

    Attributes:
        patient: Patient id.
        slide: Record of the slide for the pack.
        index: One row per patch with columns x, y, label, height, width.
        counts: Row of the table of slides: a value for each name in ``COLUMNS``.
        pixels_path: NumPy file in the cache folder with the pixels of the patches.
        details_path: NumPy file in the cache folder with the overview of the slide, and with the
            histogram and the checksum of the pixels.
        was_complete: True if an earlier call has cut the slide.
    """

    patient: str
    slide: PackedSlide
    index: pd.DataFrame
    counts: dict[str, Any]
    pixels_path: Path
    details_path: Path
    was_complete: bool = False

    def pixels(self) -> NDArray[np.uint8]:
        """Return the pixels of the patches, shape (N, patch_px, patch_px, 3), memory-mapped."""
        pixels: NDArray[np.uint8] = np.load(self.pixels_path, mmap_mode="r")
        return pixels

    def details(self) -> tuple[Overview, NDArray[np.int64], int]:
        """Read the overview of the slide, and the histogram and the CRC-32 of the pixels.

        The histogram has the shape (3, 256).
        """
        with np.load(self.details_path) as file:
            overview = Overview(file["thumbnail"], file["tissue"])
            return overview, file["histogram"], int(file["crc"])


@dataclass(frozen=True)
class SlideCutter:
    """Object that cuts slides into labelled patches; all slides have the same settings.

    Attributes:
        cache: Folder of the cache files. The name of a file depends on the slide and the settings.
        pictures: Folder of the pictures. The picture of a slide shows outlines, tissue and patches.
        settings: Settings for cutting patches.
        labels: Settings for labelling patches.
        patch_px: Side of a patch in px.
        mpp: Microns per px of the patches.
    """

    cache: Path
    pictures: Path
    settings: SlideSettings
    labels: LabelSettings
    patch_px: int
    mpp: float

    def open(self, row: ManifestRow) -> Slide:
        """Open the slide of a manifest row."""
        return open_slide(row.slide, mpp=self.settings.for_slide(row).mpp)

    def picture(self, row: ManifestRow) -> Path:
        """Return the path of the picture of a slide."""
        return self.pictures / row.patient / f"{row.slide_name}.png"

    def annotation_file(self, row: ManifestRow) -> Path | None:
        """Return the annotation file of a slide; return None if the slide has none.

        An annotation file in the manifest replaces the annotation file in the folder.
        """
        if row.annotations is not None or self.labels.folder is None:
            return row.annotations
        return find_annotation_file(self.labels.folder, row.slide)

    def annotations(self, row: ManifestRow, slide: Slide) -> list[Annotation]:
        """Read the annotations of a slide.

        If a slide has no annotation file, the list is empty, and the user must choose the label of
        unannotated tissue.

        Raises:
            SlideError: The annotation file cannot be used, or the user did not choose this label.
        """
        file = self.annotation_file(row)
        if file is None:
            if self.labels.unannotated is None:
                raise SlideError(
                    f"{row.slide}: has no annotations; give a file in the manifest or in the "
                    "folder --annotations, or choose --unannotated"
                )
            return []
        return read_annotations(
            file,
            size=(slide.width, slide.height),
            bounds=slide.bounds,
            mpp=slide.mpp,
            frame=self.labels.frame,
            properties=slide.properties,
        )

    def cut(self, row: ManifestRow, *, is_stopped: Callable[[], bool]) -> CutSlide:
        """Cut a slide into labelled patches, and draw the picture of the slide.

        Args:
            row: Manifest row of the slide.
            is_stopped: Function that returns True if the cutting must end.

        Raises:
            SlideError: The slide, its mask or its annotations cannot be used, or no patch is left.
            InterruptedError: ``is_stopped`` returned True.
        """
        # The picture is drawn while the patches are read.
        with self.open(row) as slide, ThreadPoolExecutor(1) as pool:
            settings = self.settings.for_slide(row)
            tiled = tile_slide(slide, settings, patch_px=self.patch_px, mpp=self.mpp)
            patches = tiled.patches
            annotations = self.annotations(row, slide)
            side = self.patch_px * self.mpp / slide.mpp
            corners = patches.coords.astype(np.float64)
            label, shares = label_patches(
                annotations,
                self.labels.classes,
                np.hstack([corners, corners + side]),
                min_share=self.labels.min_share,
                unannotated=self.labels.unannotated or "unknown",
            )
            drawing = pool.submit(
                self._draw, row, slide, tiled.tissue, annotations, patches.coords, label, side
            )
            counts = self._counts(row, slide, label, shares)
            is_kept = label != LEFT_OUT
            if not is_kept.any():
                raise SlideError(
                    f"{row.slide}: no patch is left, because all {len(label)} patches with tissue "
                    "are ignored or skipped"
                )
            patches.select(is_kept)
            key = self._key(slide, tiled)
            cut = CutSlide(
                patient=row.patient,
                slide=PackedSlide(
                    name=row.slide_name,
                    path=str(row.slide.absolute()),
                    mpp=slide.mpp,
                    mpp_source=slide.mpp_source,
                    width=slide.width,
                    height=slide.height,
                    bounds=slide.bounds,
                    fingerprint=slide.fingerprint(),
                ),
                index=self._index(slide, patches, label[is_kept]),
                counts=counts,
                pixels_path=self.cache / f"{key}.npy",
                details_path=self.cache / f"{key}.npz",
                was_complete=(self.cache / f"{key}.npz").exists(),
            )
            if not cut.was_complete:
                overview = Overview(tiled.thumbnail, tiled.tissue)
                self._write(cut, patches, overview, is_stopped=is_stopped)
            drawing.result()
        return cut

    def _write(
        self,
        cut: CutSlide,
        patches: SlidePatches,
        overview: Overview,
        *,
        is_stopped: Callable[[], bool],
    ) -> None:
        """Write the file of pixels, then the file of details.

        Therefore, if the file of details exists, the file of pixels is complete.
        """
        crc, histogram = 0, np.zeros((3, 256), np.int64)
        shape = (len(patches), self.patch_px, self.patch_px, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        with (
            full_disk_as_error(self.cache),
            cut.pixels_path.open("wb") as file,
            closing(patches.batches(_BATCH_SIZE)) as batches,
        ):
            np.lib.format.write_array_header_1_0(file, header)
            for batch in batches:
                if is_stopped():
                    raise InterruptedError
                data = np.ascontiguousarray(batch).data
                file.write(data)
                crc = zlib.crc32(data, crc)
                histogram += channel_histogram(batch)
            file.flush()
            os.fsync(file.fileno())
        with atomic_write(cut.details_path) as partial, partial.open("wb") as details:
            np.savez(details, **overview._asdict(), histogram=histogram, crc=crc)

    def _key(self, slide: Slide, tiled: TiledSlide) -> str:
        """Return the name of the cache files of a slide, without suffix.

        The name is a hash of the slide and of the settings that change the pixels or the overview.
        """
        parts = (_FORMAT, cv2.__version__, slide.fingerprint(), slide.mpp, self.patch_px, self.mpp)
        digest = hashlib.sha256(repr(parts).encode())
        digest.update(np.ascontiguousarray(tiled.patches.row_col).data)
        digest.update(np.packbits(tiled.tissue).data)
        return digest.hexdigest()[:32]

    def _index(self, slide: Slide, patches: SlidePatches, label: NDArray[np.int8]) -> pd.DataFrame:
        beyond = np.array([slide.width, slide.height]) - patches.coords
        # A patch at the edge of the slide is padded with white.
        inside = np.rint(beyond * slide.mpp / self.mpp).clip(1, self.patch_px).astype(np.uint8)
        x, y = patches.coords.T
        width, height = inside.T
        return pd.DataFrame({"x": x, "y": y, "label": label, "height": height, "width": width})

    def _counts(
        self,
        row: ManifestRow,
        slide: Slide,
        label: NDArray[np.int8],
        shares: NDArray[np.float64],
    ) -> dict[str, Any]:
        patch_mm2 = (self.patch_px * self.mpp / 1000) ** 2
        areas = dict(zip(SHARES, shares.sum(axis=0) * patch_mm2, strict=True))
        file = self.annotation_file(row)
        return {
            "patient": row.patient,
            "slide": row.slide_name,
            "file": str(row.slide),
            "annotations": "" if file is None else str(file),
            "mpp": slide.mpp,
            "patches": int((label != LEFT_OUT).sum()),
            "idc": int((label == 1).sum()),
            "non_idc": int((label == 0).sum()),
            "unknown": int((label == UNKNOWN).sum()),
            "left_out": int((label == LEFT_OUT).sum()),
            **{column: float(areas[name]) for name, column in _AREAS.items()},
            "reason": "",
        }

    def _draw(
        self,
        row: ManifestRow,
        slide: Slide,
        tissue: NDArray[np.bool_],
        annotations: list[Annotation],
        coords: NDArray[np.int32],
        label: NDArray[np.int8],
        side: float,
    ) -> None:
        picture = slide_picture(
            slide, tissue, annotations, self.labels.classes, coords=coords, label=label, side=side
        )
        write_bytes(self.picture(row), picture)
