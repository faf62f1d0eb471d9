"""The map of one patient: values of patches, and their grids."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_idc.geometry.grid import crop_center, mosaic, scatter_to_grid, shape_of


@dataclass(frozen=True)
class SlideView:
    """Overview of the slide of a map.

    Attributes:
        name: File name, without its folder.
        mpp: Microns per level-0 px.
        width, height: Size of level 0 in px.
        thumbnail: Thumbnail of the complete slide, shape (h, w, 3), uint8.
        tissue: Mask of the tissue in the thumbnail, shape (h, w), bool.
    """

    name: str
    mpp: float
    width: int
    height: int
    thumbnail: NDArray[np.uint8]
    tissue: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class PatientPatches:
    """Patches of a patient, without their pixels.

    Attributes:
        patient: Id.
        source: "pack" or "slide".
        patch_px: Side of a patch in px.
        mpp: Microns per px of a patch.
        mpp_source: Origin of ``mpp``.
        provenance: Record of the data and the run, JSON-ready; its "identity" is the cache key.
        coords: Top left corners x, y in level-0 px, shape (N, 2), int32.
        row_col: Grid cells, shape (N, 2), int32.
        label: 0, 1 or -1 unknown, shape (N,), int8.
        stride_px: Distance between neighboring patches in px; None if they do not overlap.
        slide: Overview of the slide; None for a pack.
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

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and cols of the grid."""
        return shape_of(self.row_col)

    @property
    def cell_px(self) -> int:
        """Side of a grid cell in px: a cell is the center of its patch, or the complete patch."""
        return self.stride_px or self.patch_px

    @property
    def origin_px(self) -> float:
        """Distance of cell (0, 0) from the corner of the slide in px, along both axes."""
        return (self.patch_px - self.cell_px) / 2

    @property
    def level0_mpp(self) -> float:
        """Microns per level-0 px, the unit of ``coords``."""
        return self.mpp if self.slide is None else self.slide.mpp

    @property
    def patch_size_level0(self) -> float:
        """Side of a patch in level-0 px; not always an integer."""
        return self.patch_px * self.mpp / self.level0_mpp

    @property
    def cell_size_level0(self) -> float:
        """Side of a cell in level-0 px."""
        return self.cell_px * self.mpp / self.level0_mpp

    @property
    def level0_size(self) -> tuple[int, int]:
        """Width and height of level 0 in px."""
        if self.slide is not None:
            return self.slide.width, self.slide.height
        rows, cols = self.shape
        return cols * self.cell_px, rows * self.cell_px


@dataclass(frozen=True, kw_only=True)
class PatientMap(PatientPatches):
    """Content of a map file: the patches of a patient and their values.

    Attributes:
        class_names: Names of class 0 and 1.
        threshold: Lowest probability at which a patch is called IDC.
        temperature: Divisor of the logits before the softmax.
        model: Summary of the checkpoint, JSON-ready.
        logit: Shape (N, 2), float32.
        probability: Calibrated probability of IDC, shape (N,), float32.
        cam: Raw CAM, shape (N, h, w), float32; None leaves it out.
        cam_layer: Name of the module that the CAM was taken from.
        cam_method: Method of the CAM.
        cam_class: Name of the class whose logit the CAM explains.
        uncertainty: Standard deviation of the probability over views and checkpoints, shape (N,),
            float32; None for a single view and checkpoint.
        smoothed: Probability smoothed over neighbors on the grid, shape (N,), float32; None
            without smoothing.
        smoothing: Parameters and threshold of the smoothing, JSON-ready.
        patches: Pixels, shape (N, patch_px, patch_px, 3), uint8; None leaves the image out.
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
    smoothed: NDArray[np.float32] | None = None
    smoothing: Mapping[str, float] | None = None
    patches: NDArray[np.uint8] | None = None

    def idc_fraction(self) -> float:
        """Return the fraction of patches called IDC by the raw probability."""
        return float((self.probability >= self.threshold).mean())

    def smoothed_idc_fraction(self) -> float | None:
        """Return the fraction of patches called IDC by the smoothed probability, if any."""
        if self.smoothed is None or self.smoothing is None:
            return None
        return float((self.smoothed >= self.smoothing["threshold"]).mean())

    def cell_cams(self) -> NDArray[np.float32]:
        """Return the part of each CAM that is within its grid cell, shape (N, h, w)."""
        if self.cam is None:
            raise ValueError("the map was made without a CAM")
        return crop_center(self.cam, fraction=self.cell_px / self.patch_px)

    def grid(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Place one value per patch on the grid, shape (rows, cols), NaN in cells without patch."""
        return scatter_to_grid(values, self.row_col, shape=self.shape, fill=np.nan)

    def probability_grid(self) -> NDArray[np.float32]:
        """Return the probability map, shape (rows, cols), NaN in cells without a patch."""
        return self.grid(self.probability)

    def label_grid(self) -> NDArray[np.int8]:
        """Return the labels, shape (rows, cols), -1 if unknown and in cells without a patch."""
        return scatter_to_grid(self.label, self.row_col, shape=self.shape, fill=-1)

    def cam_mosaic(self) -> NDArray[np.float32]:
        """Return the CAM mosaic, shape (rows * h, cols * w), NaN in cells without a patch.

        If patches overlap, each cell shows the center of its patch.
        """
        return mosaic(self.cell_cams(), self.row_col, shape=self.shape, fill=np.nan)
