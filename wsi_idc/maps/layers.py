"""The layers of a map: which there are, and the title, order and color scale of each."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import COLORMAPS, LABEL_COLORS

TOP_PERCENTILE = 99.5
_METHOD_TITLES = {"gradcam": "Grad-CAM"}


@dataclass(frozen=True)
class LabelClass:
    """A label with its name and its color, a hex code."""

    label: int
    name: str
    color: str


@dataclass(frozen=True)
class Layer:
    """A quantity of a map that pictures, exports and pages show.

    Attributes:
        name: Name of the layer in file names.
        title: Name of the layer for people.
        values: One value a patch, shape (N,), or a CAM a patch, shape (N, h, w); None for the
            stitched tissue.
        colormap: matplotlib's name of the colormap, empty for tissue and labels.
        vmax: Value with the last color; the first color is zero.
        is_open: Whether larger values than ``vmax`` may occur.
        note: Remark on the values, empty where the title is enough.
        classes: Labels of the label layer.
    """

    name: str
    title: str
    values: NDArray | None
    colormap: str = ""
    vmax: float = 1.0
    is_open: bool = False
    note: str = ""
    classes: tuple[LabelClass, ...] = ()


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
    layers.append(
        _continuous("probability", f"Probability of {idc}", patient_map.probability),
    )
    if patient_map.smoothed is not None:
        layers.append(_continuous("smoothed", "Smoothed probability", patient_map.smoothed))
    if patient_map.cam is not None:
        cams = patient_map.cell_cams()
        layers.append(
            _continuous(
                "cam",
                cam_title(patient_map),
                cams,
                vmax=robust_max(cams),
                is_open=True,
                note="raw, one scale for the patient",
            )
        )
    if patient_map.uncertainty is not None:
        vmax = robust_max(patient_map.uncertainty) if uncertainty_max is None else uncertainty_max
        layers.append(
            _continuous(
                "uncertainty",
                "Uncertainty",
                patient_map.uncertainty,
                vmax=vmax,
                is_open=True,
                note="standard deviation",
            )
        )
    if has_labels(patient_map):
        names = label_names(patient_map)
        classes = tuple(LabelClass(label, names[label], LABEL_COLORS[label]) for label in names)
        layers.append(Layer("labels", "Labels", patient_map.label, classes=classes))
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
    method = _METHOD_TITLES.get(patient_map.cam_method, patient_map.cam_method)
    return f"{method} of {patient_map.cam_class}"


def _continuous(
    name: str,
    title: str,
    values: NDArray[np.float32],
    *,
    vmax: float = 1.0,
    is_open: bool = False,
    note: str = "",
) -> Layer:
    return Layer(name, title, values, COLORMAPS[name], vmax, is_open, note)
