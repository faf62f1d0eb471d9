"""The layers of a map: which there are, and the title, order and color scale of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import COLORMAPS

TOP_PERCENTILE = 99.5


@dataclass(frozen=True)
class Layer:
    """A quantity of a map that pictures, exports and pages show.

    Attributes:
        name: Name of the layer in file names.
        title: Name of the layer for people.
        values: One value a patch, shape (N,), or a CAM a patch, shape (N, h, w); None for the
            stitched tissue.
        vmax: Value with the last color; the first color is zero.
        is_open: Whether larger values than ``vmax`` may occur.
        note: Remark on the values, empty where the title is enough.
        classes: Label to name, of the label layer.
    """

    name: str
    title: str
    values: NDArray | None
    vmax: float = 1.0
    is_open: bool = False
    note: str = ""
    classes: Mapping[int, str] = field(default_factory=dict)

    @property
    def colormap(self) -> str:
        """Colormap in matplotlib, empty for tissue and labels."""
        return COLORMAPS.get(self.name, "")


def layers_of(
    patient_map: PatientMap, *, has_tissue: bool = True, uncertainty_max: float | None = None
) -> list[Layer]:
    """Return the layers of a map, bottom first.

    Args:
        patient_map: The map.
        has_tissue: Whether there is a picture of the tissue.
        uncertainty_max: Value with the last color of the uncertainty; None takes the robust
            maximum of the patient.
    """
    idc = patient_map.class_names[1]
    layers = [Layer("tissue", "Tissue", None)] if has_tissue else []
    layers.append(Layer("probability", f"Probability of {idc}", patient_map.probability))
    if patient_map.smoothed is not None:
        layers.append(Layer("smoothed", "Smoothed probability", patient_map.smoothed))
    if patient_map.cam is not None:
        cams, note = patient_map.cell_cams(), "raw, one scale for the patient"
        layers.append(Layer("cam", cam_title(patient_map), cams, robust_max(cams), True, note))
    if has_labels(patient_map):
        classes = label_names(patient_map)
        layers.append(Layer("labels", "Labels", patient_map.label, classes=classes))
    if (values := patient_map.uncertainty) is not None:
        vmax = robust_max(values) if uncertainty_max is None else uncertainty_max
        layers.append(Layer("uncertainty", "Uncertainty", values, vmax, True, "standard deviation"))
    return layers


def crop_to_patches(patient_map: PatientMap) -> PatientMap:
    """Return the map on a grid that begins with the first row and column that have a patch."""
    return replace(patient_map, row_col=patient_map.row_col - patient_map.row_col.min(axis=0))


def robust_max(values: NDArray[np.float32]) -> float:
    """Return the 99.5th percentile of all values of a patient, 1 where it is not positive.

    Larger values share one color, so that a single glowing pixel does not darken the rest.
    """
    finite = values[np.isfinite(values)]
    top = float(np.percentile(finite, TOP_PERCENTILE)) if finite.size else 0.0
    return top if top > 0 else 1.0


def has_labels(patient_map: PatientMap) -> bool:
    """Return whether any label of a map is known."""
    return bool((patient_map.label >= 0).any())


def label_names(patient_map: PatientMap) -> dict[int, str]:
    """Return the name of each label, the unknown label last."""
    return {**dict(enumerate(patient_map.class_names)), -1: "unknown"}


def cam_title(patient_map: PatientMap) -> str:
    """Return the method and class of the CAM of a map."""
    method = "Grad-CAM" if patient_map.cam_method == "gradcam" else patient_map.cam_method
    return f"{method} of {patient_map.cam_class}"
