"""The layers of a page: their names, colours and scales."""

from dataclasses import dataclass, field

import numpy as np

from wsi_idc.maps.layers import cam_title, label_names, robust_max
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import COLORMAPS
from wsi_idc.plotting.colors import LABEL_COLORS as HEX_COLOURS
from wsi_idc.plotting.raster import color_table
from wsi_idc.report.layers import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    TRUE_NEGATIVE,
    TRUE_POSITIVE,
)

CLEAR = "#00000000"
CALLED_COLOUR = "#19c8b9"
TRUTH_COLOUR = "#ffffff"
HALO_COLOUR = "#102a43"
SELECTED_COLOUR = "#ff2bd6"  # neither in viridis nor in inferno
PALETTES = {
    quantity: ["#{:02x}{:02x}{:02x}".format(*colour[:3]) for colour in color_table(name).tolist()]
    for quantity, name in COLORMAPS.items()
}
# By code: 1 unknown, 2 non-IDC, 3 IDC; told apart without red and green, and in grey.
LABEL_COLOURS = {label + 2: HEX_COLOURS[label] for label in (-1, 0, 1)}
OUTCOME_COLOURS = {
    TRUE_POSITIVE: "#0b6fb8",
    FALSE_POSITIVE: "#f0a202",
    FALSE_NEGATIVE: "#d6246e",
    TRUE_NEGATIVE: "#c9d1da",
}


@dataclass(frozen=True)
class Legend:
    """How a layer is offered.

    Attributes:
        name: Of its renderers and controls.
        title: What a reader sees.
        shown: Whether it is on at the start.
        opacity: At the start; None for lines.
        low, high: Values at the ends of its colour bar.
        palette: Colours of the bar, none where there are ``keys`` instead.
        keys: Colour and meaning.
    """

    name: str
    title: str
    shown: bool = False
    opacity: float | None = 0.5
    low: str = ""
    high: float | None = None
    palette: list[str] = field(default_factory=list)
    keys: list[tuple[str, str]] = field(default_factory=list)

    @property
    def gradient(self) -> str:
        """The colour bar, as CSS."""
        stops = [
            self.palette[place] for place in np.linspace(0, len(self.palette) - 1, 16).astype(int)
        ]
        return f"linear-gradient(90deg, {', '.join(stops)})"


def legends_of(content: PatientMap, *, with_tissue: bool) -> list[Legend]:
    """Return the layers that a map has, top first.

    Args:
        content: The map.
        with_tissue: Whether there is a picture under them.
    """
    known = bool((content.label >= 0).any())
    names = label_names(content)
    found = [Legend("regions", "Called IDC", shown=True, opacity=None, keys=[(CALLED_COLOUR, "")])]
    if known:
        keys = [(TRUTH_COLOUR, "")]
        found.append(Legend("truth", "Labelled IDC", opacity=None, keys=keys))
        words = ("true pos.", "false pos.", "false neg.", "true neg.")
        keys = [(OUTCOME_COLOURS[code], word) for code, word in enumerate(words, 1)]
        found.append(Legend("errors", "Errors", keys=keys))
        present = [label for label in (0, 1, -1) if (content.label == label).any()]
        keys = [(LABEL_COLOURS[label + 2], names[label]) for label in present]
        found.append(Legend("labels", "Labels", keys=keys))
    if content.uncertainty is not None:
        found.append(_bar("uncertainty", "Uncertainty", high=robust_max(content.uncertainty)))
    if content.cam is not None:
        found.append(_bar("cam", cam_title(content), high=robust_max(content.cell_cams())))
    if content.smoothed is not None:
        found.append(_bar("smoothed", "Smoothed", high=1))
    found.append(legend_of_probability())
    if with_tissue:
        found.append(Legend("tissue", "Tissue", shown=True, opacity=1.0))
    return found


def legend_of_probability() -> Legend:
    """Return the layer that every map has."""
    return _bar("probability", "Probability", high=1, shown=True)


def _bar(name: str, title: str, *, high: float, shown: bool = False) -> Legend:
    return Legend(name, title, shown=shown, low="0", high=high, palette=PALETTES[name])
