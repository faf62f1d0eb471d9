"""A patient's page as a bokeh document: its models, and what they do in the browser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.events import DocumentReady
from bokeh.models import ColumnDataSource, CustomJS, RadioButtonGroup, Slider, Span
from numpy.typing import NDArray

from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.template import read_text
from wsi_idc.report.canvas import canvas_of
from wsi_idc.report.layers import (
    BoundingBox,
    bounding_box,
    cam_levels,
    outcomes,
    patch_columns,
    region_boundary,
    to_bbox_grid,
)
from wsi_idc.report.legend import PALETTES, legends_of
from wsi_idc.report.widgets import (
    chart_of,
    layer_controls,
    probability_toggle,
    reset_button,
    threshold_slider,
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
    window, called = bounding_box(content), content.probability >= threshold
    grids: dict[str, list[NDArray]] = {
        "probability": [to_bbox_grid(content.probability, content, fill=np.nan)],
        "labels": [to_bbox_grid((content.label + 2).astype(np.uint8), content, fill=0)],
    }
    if content.cam is not None:
        grids["cam"] = [cam_levels(content)]
    for name, values in (("uncertainty", content.uncertainty), ("smoothed", content.smoothed)):
        if values is not None:
            grids[name] = [to_bbox_grid(values, content, fill=np.nan)]
    codes = to_bbox_grid(outcomes(content.label, called), content, fill=0)
    return Sources(
        patches=ColumnDataSource(patch_columns(content), name="patches"),
        grids=ColumnDataSource(grids, name="grids"),
        errors=ColumnDataSource({"errors": [codes]}, name="errors"),
        regions=_lines(to_bbox_grid(called, content, fill=False), window, name="regions"),
        truth=_lines(to_bbox_grid(content.label == 1, content, fill=False), window, name="truth"),
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


def _lines(mask: NDArray[np.bool_], window: BoundingBox, *, name: str) -> ColumnDataSource:
    x, y = region_boundary(mask, window)
    ends = {"x0": x[:, 0], "y0": y[:, 0], "x1": x[:, 1], "y1": y[:, 1]}
    return ColumnDataSource(ends, name=name)


def document_of(
    content: PatientMap, pictures: Sequence[Tissue], *, threshold: float, patch_scale: float
) -> Document:
    """Return the models of a page, each part of it a root with a name.

    Args:
        content: The map.
        pictures: The tissue, bottom first; the last one holds the patches if there is one.
        threshold: Where the slider starts.
        patch_scale: Px of the last picture for each px of a patch; 0 where it has none.
    """
    sources = sources_of(content, pictures, threshold=threshold)
    slider, by = threshold_slider(threshold), probability_toggle()
    canvas, renderers = canvas_of(content, sources)
    chart, line = chart_of(content, threshold, by)
    roots = [canvas, chart, slider, reset_button(slider, by, threshold, content)]
    if content.smoothed is not None:
        roots.append(by)
    for legend in legends_of(content, with_tissue=bool(pictures)):
        roots += layer_controls(legend, renderers[legend.name])
    at_start = _connect(content, sources, slider=slider, by=by, line=line, patch_scale=patch_scale)
    document = Document()
    with document.models.freeze():  # else each root makes it look at all models anew
        for root in roots:
            document.add_root(root)
        document.js_on_event(DocumentReady, *at_start)
    return document


def _connect(
    content: PatientMap,
    sources: Sources,
    *,
    slider: Slider,
    by: RadioButtonGroup,
    line: Span,
    patch_scale: float,
) -> list[CustomJS]:
    """Let the threshold redraw, and a click show its patch; return both, for the start."""
    window = bounding_box(content)
    redraw = _script(
        "redraw.js",
        patches=sources.patches,
        errors=sources.errors,
        regions=sources.regions,
        threshold=slider,
        by=by,
        line=line,
        grid={name: getattr(window, name) for name in BoundingBox.__dataclass_fields__},
    )
    slider.js_on_change("value", redraw)
    by.js_on_change("active", redraw)
    cam: Mapping[str, Any] = {}
    if content.cam is not None:
        rows, cols = cam_levels(content).shape
        cam = {
            "height": rows // window.rows,
            "width": cols // window.cols,
            "columns": cols,
            "palette": PALETTES["cam"],
        }
    show = _script(
        "show.js",
        patches=sources.patches,
        grids=sources.grids,
        tissue=sources.tissue,
        cam=dict(cam),
        columns=window.cols,
        side_px=content.cell_px * patch_scale,
    )
    sources.patches.selected.js_on_change("indices", show)
    sources.patches.selected.indices = [int(np.argmax(np.nan_to_num(content.probability)))]
    return [redraw, show]


def _script(name: str, **arguments: Any) -> CustomJS:
    return CustomJS(args=arguments, code=read_text(name))
