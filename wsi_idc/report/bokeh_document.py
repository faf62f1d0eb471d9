"""A patient's page as a bokeh document: its models, and what they do in the browser."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.events import DocumentReady
from bokeh.models import CustomJS, RadioButtonGroup, Slider, Span

from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.html import read_text
from wsi_idc.report.canvas import Sources, Tissue, canvas_of, sources_of
from wsi_idc.report.layers import (
    BoundingBox,
    bounding_box,
    cam_levels,
)
from wsi_idc.report.legend import PALETTES, legends_of
from wsi_idc.report.widgets import (
    chart_of,
    layer_controls,
    probability_toggle,
    reset_button,
    threshold_slider,
)


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
    return CustomJS(args=arguments, code=read_text(f"report/templates/{name}"))
