"""Layers of a map: their values, titles, order and color scales."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import COLORMAPS, FLAG_COLORS, LABEL_COLORS

TOP_PERCENTILE = 99.5
# Optional fields of ``PatientMap`` with one value per patch.
OPTIONAL_VALUES = ("uncertainty", "unsmoothed", "smoothed", "novelty")


@dataclass(frozen=True)
class Layer:
    """A quantity of a map; it is shown in pictures, exports and pages.

    Attributes:
        name: Name of the layer in file names.
        title: Title of the layer in pictures and pages.
        values: One value per patch, shape (N,), or one CAM per patch, shape (N, h, w). The layer
            of the tissue has no values.
        vmax: Value that has the last color of the colormap; 0 has the first color.
        is_open: Whether values may be larger than ``vmax``.
        note: Remark about the values; may be empty.
        classes: For each value, the name of the class; only labels and flags have classes. Patches
            with another value have no color.
        colors: For each value in ``classes``, the color.
        counts: For each value in ``classes``, the number of patches in the legend; may be empty.
    """

    name: str
    title: str
    values: NDArray | None
    vmax: float = 1.0
    is_open: bool = False
    note: str = ""
    classes: Mapping[int, str] = field(default_factory=dict)
    colors: Mapping[int, str] = field(default_factory=dict)
    counts: Mapping[int, int] = field(default_factory=dict)

    @property
    def colormap(self) -> str:
        """Name of the matplotlib colormap; empty for tissue, labels and flags."""
        return COLORMAPS.get(self.name, "")

    def legend_texts(self) -> dict[int, str]:
        """Return the legend text of each class: the name, and the number of patches if known."""
        counted = {value: f"{self.classes[value]} ({num:,})" for value, num in self.counts.items()}
        return {**self.classes, **counted}


def layers_of(
    patient_map: PatientMap, *, has_tissue: bool = True, uncertainty_max: float | None = None
) -> list[Layer]:
    """Return the layers of a map, from bottom to top.

    Args:
        patient_map: Map of a patient.
        has_tissue: Whether a picture of the tissue is available.
        uncertainty_max: Uncertainty that has the last color of the colormap; None means the
            ``robust_max`` of the map's uncertainties.
    """
    idc = patient_map.class_names[1]
    layers = [Layer("tissue", "Tissue", None)] if has_tissue else []
    layers.append(Layer("probability", f"Probability of {idc}", patient_map.probability))
    if (second := patient_map.second_probability) is not None:
        layers.append(Layer(second.name, second.title, second.values))
    if patient_map.cam is not None:
        cams, note = patient_map.cell_cams(), "raw, one scale for the patient"
        layers.append(Layer("cam", cam_title(patient_map), cams, robust_max(cams), True, note))
    if has_labels(patient_map):
        classes = label_names(patient_map)
        layers.append(
            Layer("labels", "Labels", patient_map.label, classes=classes, colors=LABEL_COLORS)
        )
    if (values := patient_map.uncertainty) is not None:
        vmax = robust_max(values) if uncertainty_max is None else uncertainty_max
        layers.append(Layer("uncertainty", "Uncertainty", values, vmax, True, "standard deviation"))
    if patient_map.novelty is not None:
        note = "percentile among the val patches"
        layers.append(Layer("novelty", "Novelty", patient_map.novelty, note=note))
    if patient_map.flags is not None:
        numbers = dict(enumerate(patient_map.flag_counts().items(), start=1))
        layers.append(
            Layer(
                "flags",
                "Flags",
                flag_numbers(patient_map),
                classes={number: name for number, (name, _) in numbers.items()},
                colors=dict(enumerate(FLAG_COLORS, start=1)),
                counts={number: count for number, (_, count) in numbers.items()},
            )
        )
    return layers


def flag_numbers(patient_map: PatientMap) -> NDArray[np.uint8]:
    """Return a flag number for each patch: 0 for no flag, 1 for the first flag, and so on.

    A patch with several flags has the number of its last flag. The shape is (N,).
    """
    assert patient_map.flags is not None
    numbers = np.zeros_like(patient_map.flags)
    for number, bit in enumerate(patient_map.flag_bits.values(), start=1):
        numbers[(patient_map.flags & bit) > 0] = number
    return numbers


def flags_in_words(counts: Mapping[str, int], *, are_excluded: bool = False) -> str:
    """Return the counts from ``PatientMap.flag_counts`` as text, such as "12 blur, 3 pen"."""
    if not counts:
        return "unknown: the map is of an older version, or its patches are too small"
    words = ", ".join(f"{num:,} {name}" for name, num in counts.items() if num) or "no patch"
    return words + (", left out of areas and regions" if are_excluded else "")


def crop_to_patches(patient_map: PatientMap) -> PatientMap:
    """Return the map without the empty rows at the top and the empty columns at the left."""
    return replace(patient_map, row_col=patient_map.row_col - patient_map.row_col.min(axis=0))


def robust_max(values: NDArray[np.float32]) -> float:
    """Return the 99.5th percentile of all values, or 1 if this percentile is not positive.

    If a color scale ends at this value, a few very large values do not make all other values dark.
    """
    finite = values[np.isfinite(values)]
    top = float(np.percentile(finite, TOP_PERCENTILE)) if finite.size else 0.0
    return top if top > 0 else 1.0


def has_labels(patient_map: PatientMap) -> bool:
    """Return whether at least one patch of a map has a known label."""
    return bool((patient_map.label >= 0).any())


def label_names(patient_map: PatientMap) -> dict[int, str]:
    """Return a dict from label to name. The last label is -1, and its name is "unknown"."""
    return {**dict(enumerate(patient_map.class_names)), -1: "unknown"}


def cam_title(patient_map: PatientMap) -> str:
    """Return the title of a map's CAM: method and class, such as "Grad-CAM of IDC"."""
    method = "Grad-CAM" if patient_map.cam_method == "gradcam" else patient_map.cam_method
    return f"{method} of {patient_map.cam_class}"
