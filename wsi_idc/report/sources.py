"""The numbers inside a patient's page, as bokeh keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from bokeh.models import ColumnDataSource
from numpy.typing import NDArray

from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.report.layers import (
    Window,
    cam_levels,
    columns_of,
    laid,
    outcomes,
    outline,
    window_of,
)


@dataclass(frozen=True)
class Tissue:
    """A picture that lies under the layers.

    Attributes:
        uri: Its data URI.
        x_mm, y_mm: Its upper left corner.
        width_mm, height_mm: Its size.
    """

    uri: str
    x_mm: float
    y_mm: float
    width_mm: float
    height_mm: float


@dataclass(frozen=True)
class Sources:
    """What is drawn, and what changes with the threshold."""

    patches: ColumnDataSource
    grids: ColumnDataSource
    errors: ColumnDataSource
    regions: ColumnDataSource
    truth: ColumnDataSource
    tissue: ColumnDataSource


def sources_of(content: PatientMap, pictures: Sequence[Tissue], *, threshold: float) -> Sources:
    """Return what a page draws of a map; what is called IDC follows from the threshold."""
    window, called = window_of(content), content.probability >= threshold
    grids: dict[str, list[NDArray]] = {
        "probability": [laid(content.probability, content, fill=np.nan)],
        "labels": [laid((content.label + 2).astype(np.uint8), content, fill=0)],
    }
    if content.cam is not None:
        grids["cam"] = [cam_levels(content)]
    for name, values in (("uncertainty", content.uncertainty), ("smoothed", content.smoothed)):
        if values is not None:
            grids[name] = [laid(values, content, fill=np.nan)]
    codes = laid(outcomes(content.label, called), content, fill=0)
    return Sources(
        patches=ColumnDataSource(columns_of(content), name="patches"),
        grids=ColumnDataSource(grids, name="grids"),
        errors=ColumnDataSource({"errors": [codes]}, name="errors"),
        regions=_lines(laid(called, content, fill=False), window, name="regions"),
        truth=_lines(laid(content.label == 1, content, fill=False), window, name="truth"),
        tissue=ColumnDataSource(
            {
                "url": [picture.uri for picture in pictures],
                "x": [picture.x_mm for picture in pictures],
                "y": [picture.y_mm for picture in pictures],
                "w": [picture.width_mm for picture in pictures],
                "h": [picture.height_mm for picture in pictures],
            },
            name="tissue",
        ),
    )


def _lines(mask: NDArray[np.bool_], window: Window, *, name: str) -> ColumnDataSource:
    x, y = outline(mask, window)
    ends = {"x0": x[:, 0], "y0": y[:, 0], "x1": x[:, 1], "y1": y[:, 1]}
    return ColumnDataSource(ends, name=name)
