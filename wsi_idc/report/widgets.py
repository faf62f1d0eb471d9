"""The controls of a patient's page: the threshold under its chart, layers and their opacity."""

import numpy as np
from bokeh.models import (
    Button,
    Checkbox,
    ColumnDataSource,
    CustomJS,
    Model,
    NumeralTickFormatter,
    RadioButtonGroup,
    Slider,
    Span,
)
from bokeh.models.renderers import GlyphRenderer
from bokeh.plotting import figure
from numpy.typing import NDArray

from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.report.layers import histogram
from wsi_idc.report.legend import CALLED_COLOUR, LABEL_COLOURS, Legend

_STEP = 0.005
_LABEL_ORDER = (-1, 0, 1)
_SMALL = (
    ":host { font-size: 13px; } .bk-btn { padding: 1px 8px; font-size: 12px; } "
    "label, .bk-input-group { display: flex; align-items: center; gap: 6px; } input { margin: 0; }"
)


def threshold_slider(threshold: float) -> Slider:
    """Return the slider of the threshold."""
    slider = Slider(start=0, end=1, step=_STEP, value=threshold, title=None)
    slider.update(name="threshold", show_value=False, tooltips=False, bar_color=CALLED_COLOUR)
    slider.update(sizing_mode="stretch_width", margin=(0, 14))  # under the chart, place by place
    return slider


def probability_toggle() -> RadioButtonGroup:
    """Return the choice of what patches are called by."""
    by = RadioButtonGroup(labels=["probability", "smoothed probability"], active=0, name="by")
    by.update(stylesheets=[_SMALL], margin=(0, 0, 8, 0))
    return by


def chart_of(content: PatientMap, threshold: float, by: RadioButtonGroup) -> tuple[figure, Span]:
    """Return the spread of what patches are called by, and the line at the threshold."""
    chart = figure(
        name="histogram",
        height=96,
        sizing_mode="stretch_width",
        x_range=(0, 1),
        tools="",
        toolbar_location=None,
        y_axis_location=None,
        min_border=0,
        min_border_left=14,
        min_border_right=14,
        outline_line_color=None,
    )
    chart.y_range.update(start=0, only_visible=True)
    chart.grid.visible = False
    chart.xaxis.ticker = [0, 0.25, 0.5, 0.75, 1]
    chart.xaxis.formatter = NumeralTickFormatter(format="0.00")
    bars = _bars(chart, content.probability, content.label)
    if content.smoothed is not None:
        others = _bars(chart, content.smoothed, content.label)
        for bar in others:
            bar.visible = False
        code = "bars.forEach((bar) => { bar.visible = by.active === 0 }); "
        code += "others.forEach((bar) => { bar.visible = by.active === 1 })"
        arguments = {"bars": bars, "others": others, "by": by}
        by.js_on_change("active", CustomJS(args=arguments, code=code))
    line = Span(location=threshold, dimension="height", line_color="#111111", line_width=2)
    chart.add_layout(line)
    return chart, line


def _bars(
    chart: figure, values: NDArray[np.float32], label: NDArray[np.int8]
) -> list[GlyphRenderer]:
    """Draw how values are spread, a colour a label."""
    bars = ColumnDataSource(histogram(values, label))
    drawn = []
    for place, one in enumerate(_LABEL_ORDER, 1):
        if f"top_{one}" in bars.data:
            quads = chart.quad(
                left="left",
                right="right",
                bottom=f"bottom_{one}",
                top=f"top_{one}",
                fill_color=LABEL_COLOURS[place],
                line_color="white",
                line_width=0.5,
                source=bars,
            )
            drawn.append(quads)
    return drawn


def reset_button(
    slider: Slider, by: RadioButtonGroup, threshold: float, content: PatientMap
) -> Button:
    """Return the button that sets the threshold back; choosing what to call by does it too."""
    smoothed = float((content.smoothing or {}).get("threshold", threshold))
    button = Button(label="Reset", name="reset", width=56, height=24, stylesheets=[_SMALL])
    code = CustomJS(
        args={"slider": slider, "by": by, "starts": [threshold, smoothed]},
        code="slider.value = starts[by.active ?? 0]",
    )
    button.js_on_click(code)
    by.js_on_change("active", code)
    return button


def layer_controls(legend: Legend, renderers: list[GlyphRenderer]) -> list[Model]:
    """Return the switch of a layer and, but for lines, the slider of its opacity."""
    switch = Checkbox(label=legend.title, active=legend.shown, name=f"{legend.name}_on")
    switch.update(stylesheets=[_SMALL], margin=0)
    for renderer in renderers:
        renderer.visible = legend.shown
        switch.js_link("active", renderer, "visible")
    if legend.opacity is None:
        return [switch]
    opacity = Slider(start=0, end=1, step=0.05, value=legend.opacity, title=None)
    opacity.update(name=f"{legend.name}_opacity", show_value=False, tooltips=False)
    opacity.update(sizing_mode="stretch_width", bar_color="#9fb3c8")
    for renderer in renderers:
        renderer.glyph.global_alpha = legend.opacity
        code = "renderer.glyph.global_alpha = {value: slider.value}"
        opacity.js_on_change(
            "value", CustomJS(args={"renderer": renderer, "slider": opacity}, code=code)
        )
    return [switch, opacity]
