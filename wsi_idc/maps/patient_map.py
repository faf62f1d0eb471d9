"""Data classes for the map of a patient: values of the patches, and grids of these values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.constants import NO_ROLE
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.geometry.grid import crop_center, mosaic, scatter_to_grid, shape_of
from wsi_idc.slides.resolution import mpp_caution


@dataclass(frozen=True)
class SlideView:
    """Overview of the slide from which a map was made.

    Attributes:
        name: Name of the slide file, without its folder.
        mpp: Microns per level-0 px.
        width, height: Size of level 0 in px.
        thumbnail: Thumbnail of the complete slide, shape (h, w, 3), uint8.
        tissue: Mask of the tissue in the thumbnail, shape (h, w), bool.
        mpp_source: Origin of ``mpp``: "file", "given", or a text such as "given, but the file
            states 0.5".
        bounds: Scanned area; None means the complete slide. QuPath crops a slide to this area.
    """

    name: str
    mpp: float
    width: int
    height: int
    thumbnail: NDArray[np.uint8]
    tissue: NDArray[np.bool_]
    mpp_source: str = "file"
    bounds: Bounds | None = None


@dataclass(frozen=True, kw_only=True)
class PatientPatches:
    """Patches of a patient, without their pixels.

    Attributes:
        patient: Patient id.
        source: Origin of the patches: "pack" or "slide".
        patch_px: Side of a patch in px.
        mpp: Microns per px of a patch.
        mpp_source: Origin of ``mpp``: "given" or "assumed" for a pack, "model" for a slide.
        provenance: Record of the data and the program, as JSON values. The entry "identity" is the
            cache key of the map.
        coords: x, y of the top left corner of each patch in level-0 px, shape (N, 2), int32.
        row_col: Row and column of each patch in the grid, shape (N, 2), int32.
        label: Label of each patch: class 0 or 1, or -1 if unknown, shape (N,), int8.
        stride_px: Distance from the left edge of a patch to the left edge of the next patch, in px;
            None if patches do not overlap.
        slide: Overview of the slide; None for a pack that was not made from slides.
        slide_name: Name of the slide; empty if the patient has only one slide.
    """

    patient: str
    source: str
    patch_px: int
    mpp: float
    mpp_source: str
    provenance: Mapping[str, Any]
    coords: NDArray[np.int32]
    row_col: NDArray[np.int32]
    label: NDArray[np.int8]
    stride_px: int | None = None
    slide: SlideView | None = None
    slide_name: str = ""

    @property
    def map_name(self) -> str:
        """Name of the map: PATIENT, or PATIENT/SLIDE if the patient has several slides."""
        return f"{self.patient}/{self.slide_name}" if self.slide_name else self.patient

    @property
    def source_file(self) -> str:
        """Name of the slide file, or of the pack; empty if the map does not record the name."""
        if self.slide is not None:
            return self.slide.name
        return Path(str(self.provenance.get("data", ""))).name

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns of the grid."""
        return shape_of(self.row_col)

    @property
    def cell_px(self) -> int:
        """Side of a grid cell in px: the stride if patches overlap, else the side of a patch."""
        return self.stride_px or self.patch_px

    @property
    def origin_px(self) -> float:
        """Distance of cell (0, 0) from the left and the top edge of its patch, in px."""
        return (self.patch_px - self.cell_px) / 2

    @property
    def level0_mpp(self) -> float:
        """Microns per level-0 px; the values in ``coords`` are level-0 px."""
        return self.mpp if self.slide is None else self.slide.mpp

    @property
    def resolution(self) -> str:
        """Resolution as a text, such as "0.25 µm/px (file), patches at 4 µm/px"."""
        if self.slide is None:
            return f"{self.mpp:g} µm/px ({self.mpp_source})"
        slide = f"{self.slide.mpp:g} µm/px ({self.slide.mpp_source})"
        return f"{slide}, patches at {self.mpp:g} µm/px"

    @property
    def fraction_on_slide(self) -> NDArray[np.float32]:
        """For each patch, the fraction of the patch's cell that is on the slide; shape (N,)."""
        if self.slide is None:
            return np.ones(len(self.row_col), np.float32)
        side, margin = self.cell_size_level0, self.origin_px * self.mpp / self.level0_mpp
        beyond = self.coords + margin + side - self.level0_size
        return np.prod(1 - np.clip(beyond / side, 0, 1), axis=1).astype(np.float32)

    @property
    def patch_size_level0(self) -> float:
        """Side of a patch in level-0 px; not always an integer."""
        return self.patch_px * self.mpp / self.level0_mpp

    @property
    def cell_size_level0(self) -> float:
        """Side of a grid cell in level-0 px; not always an integer."""
        return self.cell_px * self.mpp / self.level0_mpp

    @property
    def level0_size(self) -> tuple[int, int]:
        """Width and height of level 0 in px; without a slide, the size of the grid."""
        if self.slide is not None:
            return self.slide.width, self.slide.height
        rows, cols = self.shape
        return cols * self.cell_px, rows * self.cell_px


def role_text(model: Mapping[str, Any]) -> str:
    """Return the role of a patient as text, such as "a test patient of the model".

    Args:
        model: Summary of the checkpoints, as in ``PatientMap``.
    """
    role = model.get("role_of_patient")
    if role is None:
        return "role in the training unknown"
    return "new for the model" if role == NO_ROLE else f"a {role} patient of the model"


class SecondProbability(NamedTuple):
    """Probability that a map has beside its main probability.

    Attributes:
        name: "unsmoothed" or "smoothed".
        title: Title in pictures and pages.
        values: Probability of each patch, shape (N,), float32.
        threshold: Lowest of these probabilities at which a patch is called IDC.
    """

    name: str
    title: str
    values: NDArray[np.float32]
    threshold: float

    def idc_fraction(self) -> float:
        """Return the fraction of patches whose probability is at least the threshold."""
        return float((self.values >= self.threshold).mean())


@dataclass(frozen=True, kw_only=True)
class PatientMap(PatientPatches):
    """Content of a map file: the patches of a patient, and the predictions for these patches.

    Attributes:
        class_names: Names of class 0 and class 1.
        threshold: Lowest ``probability`` at which a patch is called IDC.
        temperature: Divisor of the logits before the softmax.
        model: Summary of the checkpoints, as JSON values.
        logit: Logits of each patch, shape (N, 2), float32.
        probability: Calibrated probability of IDC for each patch, shape (N,), float32. If
            ``unsmoothed`` is not None, it is smoothed over neighboring patches.
        cam: CAM of each patch, not normalized, shape (N, h, w), float32; None without CAMs. While
            a map is built, ``cam`` and ``patches`` are on disk, and an index such as ``cam[2:5]``
            reads from the disk.
        cam_layer: Name of the network layer from which the CAMs were taken.
        cam_method: Name of the CAM method.
        cam_class: Name of the class whose logit the CAM explains.
        uncertainty: Standard deviation of the probability over views and checkpoints, shape (N,),
            float32; None if there is only one view and one checkpoint.
        unsmoothed: Probability of each patch before smoothing, shape (N,), float32; None without
            smoothing.
        unsmoothed_threshold: Threshold for ``unsmoothed``; None without smoothing.
        smoothed: Smoothed probability of each patch in a map of version 0.1.0, in which
            ``probability`` is not smoothed, shape (N,), float32; None in other maps.
        smoothing: Parameters and threshold of the smoothing; None without smoothing.
        novelty: Difference of each patch from the train patches, from 0 to 1, shape (N,), float32;
            None if the checkpoint has no novelty model. ``models.novelty`` defines the values.
        novelty_limit: Largest mean novelty that is usual for a patient; None without ``novelty``.
        flags: Bits of the quality flags of each patch, shape (N,), uint8; None in maps of older
            versions, and in maps with patches that are too small for flags.
        flag_bits: Dict from the name of each flag, such as "blur", to its bit in ``flags``.
        exclude_flagged: Whether areas and regions leave out the patches that have a flag.
        patches: Pixels of the patches, shape (N, patch_px, patch_px, 3), uint8; None if the map
            has no picture of the tissue, or was read from a file.
    """

    class_names: tuple[str, ...]
    threshold: float
    temperature: float
    model: Mapping[str, Any]
    logit: NDArray[np.float32]
    probability: NDArray[np.float32]
    cam: NDArray[np.float32] | None = None
    cam_layer: str = ""
    cam_method: str = "gradcam"
    cam_class: str = "IDC"
    uncertainty: NDArray[np.float32] | None = None
    unsmoothed: NDArray[np.float32] | None = None
    unsmoothed_threshold: float | None = None
    smoothed: NDArray[np.float32] | None = None
    smoothing: Mapping[str, float] | None = None
    novelty: NDArray[np.float32] | None = None
    novelty_limit: float | None = None
    flags: NDArray[np.uint8] | None = None
    flag_bits: Mapping[str, int] = field(default_factory=dict)
    exclude_flagged: bool = False
    patches: NDArray[np.uint8] | None = None

    def idc_fraction(self) -> float:
        """Return the fraction of patches whose ``probability`` is at least the threshold."""
        return float((self.probability >= self.threshold).mean())

    @property
    def second_probability(self) -> SecondProbability | None:
        """The unsmoothed probability; in a map of version 0.1.0, the smoothed one; or None."""
        if self.unsmoothed is not None and self.unsmoothed_threshold is not None:
            title = "Probability, not smoothed"
            return SecondProbability(
                "unsmoothed", title, self.unsmoothed, self.unsmoothed_threshold
            )
        if self.smoothed is not None and self.smoothing is not None:
            title, threshold = "Smoothed probability", self.smoothing["threshold"]
            return SecondProbability("smoothed", title, self.smoothed, threshold)
        return None

    @property
    def caution(self) -> str:
        """Reasons not to trust the map; the text is empty without a reason.

        Possible reasons are that the patches are unlike the train patches, and that the given mpp
        contradicts the slide file.
        """
        reasons = []
        if self.novelty is not None and self.novelty_limit is not None:
            mean, limit = float(self.novelty.mean()), self.novelty_limit
            if mean > limit:
                reasons.append(f"unlike the training data (novelty {mean:.2f} > {limit:.2f})")
        if self.slide is not None:
            reasons.append(mpp_caution(self.slide.mpp, self.slide.mpp_source))
        return "; ".join(filter(None, reasons))

    def flag_counts(self) -> dict[str, int]:
        """Return a dict from flag to number of patches; empty if the map has no flags."""
        if self.flags is None:
            return {}
        return {name: int(((self.flags & bit) > 0).sum()) for name, bit in self.flag_bits.items()}

    @property
    def is_counted(self) -> NDArray[np.bool_]:
        """True for each patch that areas and regions include, shape (N,), bool."""
        if self.flags is None or not self.exclude_flagged:
            return np.ones(len(self.row_col), bool)
        return self.flags == 0

    def called_grid(self, threshold: float) -> NDArray[np.bool_]:
        """Return True for each cell of a region called IDC. The shape is (rows, cols)."""
        called = (self.probability >= threshold) & self.is_counted
        return scatter_to_grid(called, self.row_col, shape=self.shape, fill=False)

    def cell_cams(self, indices: Any = slice(None)) -> NDArray[np.float32]:
        """Return the CAMs of the patches ``indices``, cropped to the cells of these patches.

        The shape is (N, h, w).
        """
        if self.cam is None:
            raise ValueError("the map was made without a CAM")
        return crop_center(self.cam[indices], fraction=self.cell_px / self.patch_px)

    def grid(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the values as a grid, shape (rows, cols). Cells without a patch are NaN."""
        return scatter_to_grid(values, self.row_col, shape=self.shape, fill=np.nan)

    def probability_grid(self) -> NDArray[np.float32]:
        """Return the probabilities as a grid, shape (rows, cols). Cells without a patch are NaN."""
        return self.grid(self.probability)

    def label_grid(self) -> NDArray[np.int8]:
        """Return the labels as a grid, shape (rows, cols). Cells without a known label are -1."""
        return scatter_to_grid(self.label, self.row_col, shape=self.shape, fill=-1)

    def cam_mosaic(self) -> NDArray[np.float32]:
        """Join the CAMs of all patches into one array, shape (rows * h, cols * w).

        If patches overlap, the CAM of each patch is cropped to the patch's cell. Cells without a
        patch are NaN.
        """
        return mosaic(self.cell_cams(), self.row_col, shape=self.shape, fill=np.nan)

    def cam_strips(self) -> Iterator[NDArray[np.float32]]:
        """Yield ``cam_mosaic`` one grid row at a time. Each part has the shape (h, cols * w)."""
        row, col = self.row_col.T
        for number in range(self.shape[0]):
            members = np.flatnonzero(row == number)
            cells = np.stack([np.zeros_like(members), col[members]], axis=1)
            shape = (1, self.shape[1])
            yield mosaic(self.cell_cams(members), cells, shape=shape, fill=np.nan)
