"""A patient's page: one HTML file with everything in it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from bokeh.embed import file_html
from bokeh.resources import INLINE
from numpy.typing import NDArray

from wsi_idc.maps.cohort import note_of
from wsi_idc.maps.layers import cam_title
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.html import page_template, tissue_uri
from wsi_idc.report.bokeh_document import document_of
from wsi_idc.report.canvas import Tissue
from wsi_idc.report.layers import bounding_box, stitched_in_window
from wsi_idc.report.legend import OUTCOME_COLOURS, legends_of

# Said in lines of their own.
_ELSEWHERE = {"checkpoint", "data", "mpp", "mpp_source", "cam_method", "cam_layer"}


def patient_page(
    content: PatientMap, image: NDArray[np.uint8] | None, row: Mapping[str, Any]
) -> str:
    """Return the HTML of a patient's page.

    Args:
        content: The map.
        image: Its stitched tissue, shape (rows * cell_px, cols * cell_px, 3), None if left out.
        row: The map's row of the cohort's table; its threshold is where the slider starts.
    """
    pictures, scale = _pictures(content, image)
    document = document_of(content, pictures, threshold=row["threshold"], patch_scale=scale)
    return file_html(
        document,
        INLINE,
        f"Patient {content.patient}: wsi-idc",
        template=page_template("report/templates/patient.html"),
        template_variables={
            "content": content,
            "row": {**row, "cell_um": content.cell_px * content.mpp},
            "layers": legends_of(content, with_tissue=bool(pictures)),
            "names": [root.name for root in document.roots],
            "outcome_colours": OUTCOME_COLOURS,
            "has_image": scale > 0,
            "has_cam": content.cam is not None,
            "cam_title": cam_title(content),
            "provenance": provenance_of(content),
        },
    )


def _pictures(content: PatientMap, image: NDArray[np.uint8] | None) -> tuple[list[Tissue], float]:
    """Return the pictures under the layers, and px of the last for each px of a patch, or 0."""
    pictures, scale, window = [], 0.0, bounding_box(content)
    if content.slide is not None:
        # Cell (0, 0) need not begin at the slide's corner.
        corners = content.coords - content.row_col[:, ::-1] * content.cell_size_level0
        margin = content.origin_px * content.mpp / content.slide.mpp
        left, top = -(np.median(corners, axis=0) + margin) * content.slide.mpp / 1000
        width, height = (
            side * content.slide.mpp / 1000 for side in (content.slide.width, content.slide.height)
        )
        uri, _ = tissue_uri(content.slide.thumbnail)
        pictures.append(Tissue(uri, float(left), float(top), width, height))
    if image is not None:
        uri, scale = tissue_uri(stitched_in_window(image, content))
        pictures.append(Tissue(uri, window.x_mm, window.y_mm, window.width_mm, window.height_mm))
    return pictures, scale


def provenance_of(content: PatientMap) -> list[tuple[str, str]]:
    """Return names and values of what made the map, those that it knows."""
    model, record = content.model, content.provenance
    identity = record.get("identity")
    identity = identity if isinstance(identity, Mapping) else {}
    libraries, smoothing = record.get("libraries"), content.smoothing
    program = " ".join(str(record.get(name) or "") for name in ("program", "version")).strip()
    slide = content.slide
    cam = None if content.cam is None else f"{content.cam_method} at {content.cam_layer}"
    pairs = [
        ("made", record.get("created")),
        ("command", _words(record.get("command"))),
        ("program", f"{program} {_commit(record.get('git_commit'))}".strip()),
        ("versions", _pairs({"python": record.get("python"), **_mapping(libraries)})),
        ("checkpoint", _words([model.get("checkpoint"), f"({model.get('architecture')})"])),
        ("sha256", model.get("sha256")),
        ("patient in its split", model.get("role_of_patient")),
        ("threshold, temperature", f"{content.threshold:.4g}, {content.temperature:.4g}"),
        ("smoothing", _pairs({k: f"{v:.4g}" for k, v in smoothing.items()}) if smoothing else None),
        ("CAM", cam),
        ("settings", _pairs({k: v for k, v in identity.items() if k not in _ELSEWHERE})),
        ("8 views", "yes" if model.get("tta") else None),
        ("ensemble of", model.get("ensemble")),
        ("data", record.get("data")),
        ("data fingerprint", identity.get("data")),
        ("slide", f"{slide.name}, {slide.width} x {slide.height} px" if slide else None),
        ("resolution", f"{content.mpp:g} µm/px ({content.mpp_source})"),
        ("classes", ", ".join(content.class_names)),
    ]
    return [(name, note_of(value)) for name, value in pairs if value not in (None, "", {}, [])]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _words(value: Any) -> str:
    words = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(str(word) for word in words if word is not None)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _commit(value: Any) -> str:
    return f"({str(value)[:12]})" if value else ""
