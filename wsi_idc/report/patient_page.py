"""Make the page of a map: one HTML file with a bokeh document and all data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import numpy as np
from bokeh.document import Document
from bokeh.events import DocumentReady
from bokeh.models import ColumnDataSource, CustomJS
from bokeh.resources import CDN, INLINE, Resources
from bokeh.settings import settings
from numpy.typing import NDArray

from wsi_idc.maps.cohort import format_note
from wsi_idc.maps.layers import cam_title, crop_to_patches, flags_in_words, label_names
from wsi_idc.maps.patient_map import PatientMap, role_text
from wsi_idc.plotting.html import page_template, read_text, tissue_uri
from wsi_idc.plotting.page_links import model_tag
from wsi_idc.plotting.raster import resize
from wsi_idc.report.canvas import (
    TissuePicture,
    build_canvas,
    canvas_values,
    histogram_chart,
    layer_controls,
    probability_toggle,
    reset_button,
    source_columns,
    threshold_slider,
)
from wsi_idc.report.cohort_page import row_key
from wsi_idc.report.layers import (
    OUTCOME_COLORS,
    PALETTES,
    PageLayer,
    crop_image,
    page_layers,
    slide_corner_mm,
)
from wsi_idc.report.page_document import PageDocument

settings.perform_document_validation = False  # this check takes a sixth of the time of a page
DIGEST_NAME, CARD_ID = "wsi-idc-digest", "card"
# Settings that ``provenance_of`` shows on separate lines, not in the line "settings".
_OWN_LINES = {"checkpoint", "data", "mpp", "mpp_source", "cam", "cam_method", "cam_layer"}


@dataclass(frozen=True)
class PageContext:
    """Values for the page of a map that are not in the map.

    Attributes:
        previous, next: Name of the map before and after this map in the report; may be empty.
        script_file: Name of the file with the code of bokeh, in the folder of the report. If the
            name is empty, the page contains the code.
        evaluations: Names and addresses of the evaluations of the model. The addresses are relative
            to the folder of the report.
        digest: Text that changes if the page must be made again.
        card: JSON of the card of the map on the page of the cohort.
    """

    previous: str = ""
    next: str = ""
    script_file: str = ""
    evaluations: tuple[tuple[str, str], ...] = ()
    digest: str = ""
    card: str = "null"


def patient_page(
    patient_map: PatientMap,
    image: NDArray[np.uint8] | None,
    row: Mapping[str, Any],
    context: PageContext | None = None,
) -> str:
    """Return the HTML of the page of a patient, or of a slide of a patient with several slides.

    Args:
        patient_map: Map of the patient or slide.
        image: Stitched tissue, shape (rows * n, cols * n, 3), where n is at most ``cell_px``. None
            if the map has no image.
        row: Row of the map in the cohort table. The slider starts at the threshold of the row.
        context: Values that are not in the map; None for a page without links to other pages.
    """
    context = context or PageContext()
    up = "../" if patient_map.slide_name else ""
    neighbors = [("previous", context.previous), ("next", context.next)]
    pictures, scale = tissue_pictures(patient_map, image)
    layers = page_layers(patient_map, has_tissue=bool(pictures))
    columns = source_columns(patient_map, pictures, threshold=row["threshold"])
    second = patient_map.second_probability
    document = _build_document(
        tuple(replace(layer, vmax=1.0, keys=()) for layer in layers),
        tuple((name, tuple(values)) for name, values in columns.items()),
        second and (second.name, second.title),
        has_script_file=bool(context.script_file),
    )
    document.set_map(patient_map, layers, columns, threshold=row["threshold"], patch_scale=scale)
    title = f"Patient {patient_map.map_name}: wsi-idc"
    template = page_template("report/templates/patient.html")
    variables = {
        "patient_map": patient_map,
        "patient_link": quote(f"{patient_map.patient}.html", safe=""),
        "flagged": _flagged(patient_map),
        "row": {**row, "cell_um": patient_map.cell_px * patient_map.mpp},
        "layers": layers,
        "names": document.names,
        "outcome_colors": OUTCOME_COLORS,
        "has_image": scale > 0,
        "cam_title": cam_title(patient_map),
        "role_text": role_text(patient_map.model),
        "provenance": provenance_of(patient_map),
        "neighbors": [
            (title, f"{up}{quote(name)}.html", name) for title, name in neighbors if name
        ],
        "evaluations": [(name, up + link) for name, link in context.evaluations],
        "model_tag": model_tag(row_key(row)),
        "script_file": context.script_file and up + context.script_file,
        "digest_name": DIGEST_NAME,
        "digest": context.digest,
        "card_id": CARD_ID,
        "card": context.card.replace("<", "\\u003c"),
    }
    return document.page.render(template, title, variables)


def tissue_pictures(
    patient_map: PatientMap, image: NDArray[np.uint8] | None
) -> tuple[list[TissuePicture], float]:
    """Return the pictures that are drawn under the layers, and the scale of the stitched tissue.

    The scale is the number of picture px per px of a patch; it is 0 if there is no ``image``.
    """
    pictures, scale = [], 0.0
    cropped = crop_to_patches(patient_map)
    if (slide := patient_map.slide) is not None:
        left, top = slide_corner_mm(patient_map)
        width, height = (side * slide.mpp / 1000 for side in (slide.width, slide.height))
        uri, _ = tissue_uri(slide.thumbnail)
        pictures.append(TissuePicture(uri, left, top, width, height))
    if image is not None:
        stitched = crop_image(image, patient_map)
        if slide is not None:
            stitched = _clear_empty_cells(stitched, cropped)
        uri, scale = tissue_uri(stitched)
        scale *= len(image) / (patient_map.shape[0] * patient_map.cell_px)
        height, width = (side * cropped.cell_px * cropped.mpp / 1000 for side in cropped.shape)
        pictures.append(TissuePicture(uri, 0, 0, width, height))
    return pictures, scale


def _clear_empty_cells(image: NDArray[np.uint8], cropped: PatientMap) -> NDArray[np.uint8]:
    """Make cells without a patch transparent, so that the slide below ``image`` is visible.

    ``cropped`` is the map after ``crop_to_patches``. The result has the shape (h, w, 4).
    """
    has_patch = np.zeros(cropped.shape, np.uint8)
    has_patch[tuple(cropped.row_col.T)] = 255
    height, width = image.shape[:2]
    return np.dstack([image, resize(has_patch, height=height, width=width)])


class _PatientDocument:
    """Document of the pages of all maps with the same layers and columns.

    Attributes:
        page: The document, as JSON with the values of one map.
        names: Names of the roots of the document; each root is a part of the page.
    """

    def __init__(
        self,
        layers: Sequence[PageLayer],
        columns: Sequence[tuple[str, Sequence[str]]],
        second: tuple[str, str] | None,
        resources: Resources,
    ) -> None:
        self._sources = {
            name: ColumnDataSource({column: [] for column in names}, name=name)
            for name, names in columns
        }
        self._slider = slider = threshold_slider()
        second_name, second_title = second or ("", "")
        labels = ["probability", second_title.lower()] if second else ["probability"]
        toggle = probability_toggle(labels)
        self._canvas, self._renderers = build_canvas(layers, self._sources)
        chart, self._line = histogram_chart(self._sources, toggle)
        button, self._reset = reset_button(slider, toggle)
        roots = [self._canvas, chart, slider, button]
        if second:
            roots.append(toggle)
        for layer in layers:
            roots += layer_controls(layer, self._renderers[layer.name])
        arguments = {name: self._sources[name] for name in ("patches", "errors", "regions")}
        arguments |= {"threshold": slider, "toggle": toggle, "line": self._line}
        arguments |= {"second": second_name, "grid": {}}
        code = read_text("report/templates/redraw.js")
        self._redraw = redraw = CustomJS(args=arguments, code=code)
        arguments = {name: self._sources[name] for name in ("patches", "grids", "tissue")}
        arguments |= {"grid": {}, "cam_palette": PALETTES["cam"]}
        arguments |= {"side_px": 0, "label_names": {}, "flag_bits": []}
        self._show = show = CustomJS(args=arguments, code=read_text("report/templates/show.js"))
        slider.js_on_change("value", redraw)
        toggle.js_on_change("active", redraw)
        selected = self._sources["patches"].selected
        selected.js_on_change("indices", show)
        document = Document()
        with document.models.freeze():  # without this, bokeh checks all models for each root
            for root in roots:
                document.add_root(root)
            document.js_on_event(DocumentReady, redraw, show)
        self.names = [root.name for root in roots]
        self.page = PageDocument(document, resources)

    def set_map(
        self,
        patient_map: PatientMap,
        layers: Sequence[PageLayer],
        columns: Mapping[str, Mapping[str, Any]],
        *,
        threshold: float,
        patch_scale: float,
    ) -> None:
        """Replace the values of the document by those of a map."""
        page, second = self.page, patient_map.second_probability
        for name, values in columns.items():
            page.set_values(self._sources[name], data=values)
        highest = int(np.argmax(np.nan_to_num(patient_map.probability)))
        page.set_values(self._sources["patches"].selected, indices=[highest])
        for model, values in canvas_values(patient_map, self._canvas):
            page.set_values(model, **values)
        for layer in layers:
            if layer.palette and layer.name != "cam":
                mapper = self._renderers[layer.name][0].glyph.color_mapper
                page.set_values(mapper, high=layer.vmax)
        page.set_values(self._slider, value=threshold)
        page.set_values(self._line, location=threshold)
        second_threshold = second.threshold if second else threshold
        page.set_arguments(self._reset, thresholds=[threshold, second_threshold])
        rows, cols = crop_to_patches(patient_map).shape
        cell_mm = patient_map.cell_px * patient_map.mpp / 1000
        page.set_arguments(self._redraw, grid={"rows": rows, "cols": cols, "cell_mm": cell_mm})
        page.set_arguments(
            self._show,
            grid={"rows": rows, "cols": cols},
            side_px=patient_map.cell_px * patch_scale,
            label_names={str(label): name for label, name in label_names(patient_map).items()},
            flag_bits=[list(flag) for flag in patient_map.flag_bits.items()],
        )


@lru_cache(maxsize=8)
def _build_document(
    layers: tuple[PageLayer, ...],
    columns: tuple[tuple[str, tuple[str, ...]], ...],
    second: tuple[str, str] | None,
    *,
    has_script_file: bool,
) -> _PatientDocument:
    """Build the document of all maps with the same layers and columns.

    Args:
        layers: Layers without the values of a map.
        columns: For each data source, its name and the names of its columns.
        second: Name and title of the second probability, if the maps have one.
        has_script_file: Whether a file beside the page has the code of bokeh.
    """
    resources = CDN if has_script_file else INLINE  # the template ignores the links of the CDN
    return _PatientDocument(layers, columns, second, resources)


def provenance_of(patient_map: PatientMap) -> list[tuple[str, str]]:
    """Return the known facts about the origin of a map, as pairs of name and value."""
    model, record = patient_map.model, patient_map.provenance
    identity, libraries = _mapping(record.get("identity")), _mapping(record.get("libraries"))
    slide, smoothing = patient_map.slide, patient_map.smoothing
    commit = f"({str(record['git_commit'])[:12]})" if record.get("git_commit") else None
    cam = f"{patient_map.cam_method} at {patient_map.cam_layer}"
    pairs = [
        ("made", record.get("created")),
        ("command", _join(record.get("command"))),
        ("program", _join([record.get("program"), record.get("version"), commit])),
        ("versions", _pairs({"python": record.get("python"), **libraries})),
        ("checkpoint", _join([model.get("checkpoint"), f"({model.get('architecture')})"])),
        ("sha256", model.get("sha256")),
        ("role of the patient", role_text(model) if "role_of_patient" in model else None),
        ("threshold, temperature", f"{patient_map.threshold:.4g}, {patient_map.temperature:.4g}"),
        ("smoothing", _pairs({k: f"{v:.4g}" for k, v in smoothing.items()}) if smoothing else None),
        ("novelty", _novelty(patient_map)),
        ("flagged", None if patient_map.flags is None else _flagged(patient_map)),
        ("CAM", None if patient_map.cam is None else cam),
        ("settings", _pairs({k: v for k, v in identity.items() if k not in _OWN_LINES})),
        ("8 views", "yes" if model.get("tta") else None),
        ("ensemble of", model.get("ensemble")),
        ("data", record.get("data")),
        ("data fingerprint", identity.get("data")),
        ("slide", f"{slide.name}, {slide.width} x {slide.height} px" if slide else None),
        (
            "scanned area (shown in QuPath)",
            str(slide.bounds) if slide and slide.bounds else None,
        ),
        ("resolution", patient_map.resolution),
        ("classes", ", ".join(patient_map.class_names)),
    ]
    return [(name, format_note(value)) for name, value in pairs if value not in (None, "", {}, [])]


def _novelty(patient_map: PatientMap) -> str | None:
    if patient_map.novelty is None:
        return None
    limit = f", usual up to {patient_map.novelty_limit:.2f}" if patient_map.novelty_limit else ""
    return f"{patient_map.novelty.mean():.2f}{limit}"


def _flagged(patient_map: PatientMap) -> str:
    return flags_in_words(patient_map.flag_counts(), are_excluded=patient_map.exclude_flagged)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _join(value: Any) -> str:
    words = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(str(word) for word in words if word is not None)


def _pairs(values: Mapping[str, Any]) -> str:
    words = {True: "yes", False: "no"}
    return ", ".join(
        f"{name} {words[value] if isinstance(value, bool) else value}"
        for name, value in values.items()
        if value is not None
    )
