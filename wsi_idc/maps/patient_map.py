"""What is known of one patient: an entry a patch, and the grids that follow from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_idc.geometry.grid import crop_center, mosaic, scatter_to_grid, shape_of


@dataclass(frozen=True)
class SlideView:
    """The slide that a map was made from, seen whole.

    Attributes:
        name: File name, without its folder.
        mpp: Microns per level-0 px.
        width, height: Of level 0, in px.
        thumbnail: The whole slide, shape (h, w, 3), uint8.
        tissue: Where tissue was found in the thumbnail, shape (h, w), bool.
    """

    name: str
    mpp: float
    width: int
    height: int
    thumbnail: NDArray[np.uint8]
    tissue: NDArray[np.bool_]


@dataclass(frozen=True)
class PatientMap:
    """What a map file holds.

    Attributes:
        patient: Id.
        source: "pack" or "slide".
        class_names: Of class 0 and 1.
        patch_px: Side of a patch in px.
        mpp: Microns per pixel.
        mpp_source: Where that number comes from.
        threshold: Probability from which a patch is called IDC.
        temperature: Divided the logits before the softmax.
        model: What the checkpoint is, JSON-ready.
        provenance: What made the map, JSON-ready; "identity" decides whether to make it anew.
        coords: Top left corners x, y in level-0 px, shape (N, 2), int32.
        row_col: Grid cells, shape (N, 2), int32.
        logit: Shape (N, 2), float32.
        probability: Calibrated probability of IDC, shape (N,), float32.
        label: 0, 1 or -1 unknown, shape (N,), int8.
        cam: Raw CAM, shape (N, h, w), float32; None leaves it out.
        cam_layer: Name of the module that the CAM was taken from.
        cam_method: How the CAM was computed.
        cam_class: Name of the class whose logit it explains.
        uncertainty: Standard deviation of the probability over views and checkpoints, shape (N,),
            float32; None where there was one of each.
        smoothed: Probability smoothed by the neighbours on the grid, shape (N,), float32; None
            where it was not asked for.
        smoothing: How, and the threshold that goes with it, JSON-ready.
        stride_px: From one patch to the next, in px; None where patches do not overlap.
        slide: Where the patches were cut from; None for a pack.
        patches: Pixels, shape (N, patch_px, patch_px, 3), uint8; None leaves the image out.
    """

    patient: str
    source: str
    class_names: tuple[str, ...]
    patch_px: int
    mpp: float
    mpp_source: str
    threshold: float
    temperature: float
    model: Mapping[str, Any]
    provenance: Mapping[str, Any]
    coords: NDArray[np.int32]
    row_col: NDArray[np.int32]
    logit: NDArray[np.float32]
    probability: NDArray[np.float32]
    label: NDArray[np.int8]
    cam: NDArray[np.float32] | None = None
    cam_layer: str = ""
    cam_method: str = "gradcam"
    cam_class: str = "IDC"
    uncertainty: NDArray[np.float32] | None = None
    smoothed: NDArray[np.float32] | None = None
    smoothing: Mapping[str, float] | None = None
    stride_px: int | None = None
    slide: SlideView | None = None
    patches: NDArray[np.uint8] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and cols of the grid."""
        return shape_of(self.row_col)

    @property
    def cell_px(self) -> int:
        """Side of a cell in px: that of a patch, less where patches overlap.

        A cell is the middle of its patch, so that its picture lies where the patch does.
        """
        return self.stride_px or self.patch_px

    @property
    def origin_px(self) -> float:
        """Where cell (0, 0) begins, in px from the slide's corner, along both axes."""
        return (self.patch_px - self.cell_px) / 2

    @property
    def level0_mpp(self) -> float:
        """Microns per level-0 px, the unit of ``coords``."""
        return self.mpp if self.slide is None else self.slide.mpp

    @property
    def patch_size_level0(self) -> float:
        """Side of a patch in level-0 px, whole only where the two resolutions divide."""
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

    def idc_fraction(self) -> float:
        """Share of the patches that are called IDC, by the raw probability."""
        return float((self.probability >= self.threshold).mean())

    def smoothed_idc_fraction(self) -> float | None:
        """Share of the patches that are called IDC by the smoothed probability, if there is one."""
        if self.smoothed is None or self.smoothing is None:
            return None
        return float((self.smoothed >= self.smoothing["threshold"]).mean())

    def cell_cams(self) -> NDArray[np.float32]:
        """Return what each cell shows of its patch's CAM, shape (N, h, w).

        Raises:
            ValueError: The map has no CAM.
        """
        if self.cam is None:
            raise ValueError("the map was made without a CAM")
        return crop_center(self.cam, fraction=self.cell_px / self.patch_px)

    def grid(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return one value a patch on the grid, shape (rows, cols), NaN where there is no patch."""
        return scatter_to_grid(values, self.row_col, shape=self.shape, fill=np.nan)

    def probability_grid(self) -> NDArray[np.float32]:
        """Probability map, shape (rows, cols), NaN where there is no patch."""
        return self.grid(self.probability)

    def label_grid(self) -> NDArray[np.int8]:
        """Labels, shape (rows, cols), -1 where unknown or no patch."""
        return scatter_to_grid(self.label, self.row_col, shape=self.shape, fill=-1)

    def cam_mosaic(self) -> NDArray[np.float32]:
        """CAM mosaic, shape (rows * h, cols * w), NaN where there is no patch.

        Where patches overlap each shows its middle.

        Raises:
            ValueError: The map has no CAM.
        """
        return mosaic(self.cell_cams(), self.row_col, shape=self.shape, fill=np.nan)
