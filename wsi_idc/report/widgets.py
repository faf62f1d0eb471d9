"""Controls of a patient's page: threshold, histogram, layers and their opacity."""

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
from wsi_idc.plotting.colors import LABEL_COLORS
from wsi_idc.report.layers import CALLED_COLOR, PageLayer, histogram

_STEP = 0.005
_SMALL = (
    ":host { font-size: 13px; } .bk-btn { padding: 1px 8px; font-size: 12px; } "
    "label, .bk-input-group { display: flex; align-items: center; gap: 6px; } input { margin: 0; }"
)


def threshold_slider(threshold: float) -> Slider:
    """Return the slider of the threshold."""
    slider = Slider(start=0, end=1, step=_STEP, value=threshold, title=None)
    slider.update(name="threshold", show_value=False, tooltips=False, bar_color=CALLED_COLOR)
    slider.update(sizing_mode="stretch_width", margin=(0, 14))  # aligned with the histogram
    return slider


def probability_toggle() -> RadioButtonGroup:
    """Return the choice between the raw and the smoothed probability for calling patches."""
    toggle = RadioButtonGroup(labels=["probability", "smoothed probability"], active=0, name="by")
    toggle.update(stylesheets=[_SMALL], margin=(0, 0, 8, 0))
    return toggle


def histogram_chart(
    patient_map: PatientMap, threshold: float, toggle: RadioButtonGroup
) -> tuple[figure, Span]:
    """Return the histogram of the chosen probability, and its line at the threshold."""
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
    raw = _draw_bars(chart, patient_map.probability, patient_map.label)
    if patient_map.smoothed is not None:
        smoothed = _draw_bars(chart, patient_map.smoothed, patient_map.label)
        for bars in smoothed:
            bars.visible = False
        code = "raw.forEach((bars) => { bars.visible = toggle.active === 0 }); "
        code += "smoothed.forEach((bars) => { bars.visible = toggle.active === 1 })"
        arguments = {"raw": raw, "smoothed": smoothed, "toggle": toggle}
        toggle.js_on_change("active", CustomJS(args=arguments, code=code))
    line = Span(location=threshold, dimension="height", line_color="#111111", line_width=2)
    chart.add_layout(line)
    return chart, line


def _draw_bars(
    chart: figure, values: NDArray[np.float32], label: NDArray[np.int8]
) -> list[GlyphRenderer]:
    """Draw the bars of each label that occurs, in the color of the label."""
    source = ColumnDataSource(histogram(values, label))
    return [
        chart.quad(
            left="left",
            right="right",
            bottom=f"bottom_{code}",
            top=f"top_{code}",
            fill_color=LABEL_COLORS[code],
            line_color="white",
            line_width=0.5,
            source=source,
        )
        for code in (-1, 0, 1)
        if f"top_{code}" in source.data
    ]


def reset_button(
    slider: Slider, toggle: RadioButtonGroup, threshold: float, patient_map: PatientMap
) -> Button:
    """Return the button that resets the threshold; the toggle resets it too."""
    smoothed = float((patient_map.smoothing or {}).get("threshold", threshold))
    button = Button(label="Reset", name="reset", width=56, height=24, stylesheets=[_SMALL])
    reset = CustomJS(
        args={"slider": slider, "toggle": toggle, "thresholds": [threshold, smoothed]},
        code="slider.value = thresholds[toggle.active ?? 0]",
    )
    button.js_on_click(reset)
    toggle.js_on_change("active", reset)
    return button


def layer_controls(layer: PageLayer, renderers: list[GlyphRenderer]) -> list[Model]:
    """Return the checkbox of a layer and, except for lines, the slider of its opacity."""
    checkbox = Checkbox(label=layer.title, active=layer.is_shown, name=f"{layer.name}_on")
    checkbox.update(stylesheets=[_SMALL], margin=0)
    for renderer in renderers:
        renderer.visible = layer.is_shown
        checkbox.js_link("active", renderer, "visible")
    if layer.opacity is None:
        return [checkbox]
    opacity = Slider(start=0, end=1, step=0.05, value=layer.opacity, title=None)
    opacity.update(name=f"{layer.name}_opacity", show_value=False, tooltips=False)
    opacity.update(sizing_mode="stretch_width", bar_color="#9fb3c8")
    for renderer in renderers:
        renderer.glyph.global_alpha = layer.opacity
        code = "renderer.glyph.global_alpha = {value: slider.value}"
        arguments = {"renderer": renderer, "slider": opacity}
        opacity.js_on_change("value", CustomJS(args=arguments, code=code))
    return [checkbox, opacity]
