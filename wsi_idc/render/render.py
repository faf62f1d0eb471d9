"""Draw views of a map as PNG for the screen and as PDF for print.

Positions and sizes of panels are in mm. Font sizes fit a printed page.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from wsi_idc import NOTICE
from wsi_idc.core.errors import MapError
from wsi_idc.maps import map_reader
from wsi_idc.maps.layers import crop_to_patches, has_labels
from wsi_idc.maps.map_reader import read_image_rows, read_map
from wsi_idc.maps.patient_map import PatientMap, role_text
from wsi_idc.plotting.raster import Pixels, downscale
from wsi_idc.plotting.style import page_style, printable, save_pdf, save_png, to_px
from wsi_idc.render.layout import fit_panel, layout_page
from wsi_idc.render.panels import PANELS, Panel, PanelInput

DEFAULT_DPI = 300
DEFAULT_VIEW = "panels"
SLIDES_VIEW = "overlay"  # default of pictures of several slides
_SAVE = {".png": save_png, ".pdf": save_pdf}
FORMATS = tuple(suffix[1:] for suffix in _SAVE)
VIEWS = {
    DEFAULT_VIEW: (
        *("slide", "tissue", "probability", "unsmoothed", "smoothed", "uncertainty", "cam"),
        "labels",
    ),
    "overlay": ("probability over tissue",),
    "contours": ("outlines",),
    "cam": ("cam over tissue",),
    "quality": ("tissue", "novelty", "flags"),
    "side-by-side": ("tissue", "probability over tissue", "cam over tissue", "labels"),
}
_LONGEST = 40
_WHITE, _NO_IMAGE = 255, 214
_MAX_SLIDES = 24  # panels on a page


def render_map(
    path: Path,
    *outs: Path,
    view: str = DEFAULT_VIEW,
    dpi: int = DEFAULT_DPI,
    threshold: float | None = None,
    exclude_flagged: bool = False,
) -> None:
    """Draw a view of a map file, and save the view in each of the files ``outs``.

    Args:
        path: Map file.
        outs: Picture files, .png or .pdf; each file is replaced in one atomic step.
        view: Name of a view, from ``VIEWS``.
        dpi: Resolution of a PNG file, and of the pictures in a PDF file.
        threshold: Lowest probability at which a patch is called IDC; None means the threshold of
            the map.
        exclude_flagged: True means that regions leave out flagged patches. False means that the
            setting of the map is used.

    Raises:
        MapError: The map cannot be read, or has no data for this view.
    """
    with page_style():
        figure = figure_of(
            path, view=view, dpi=dpi, threshold=threshold, exclude_flagged=exclude_flagged
        )
        for out in outs:
            _SAVE[out.suffix](figure, out, dpi=dpi)


def picture_name(path: Path, *, view: str, suffix: str) -> str:
    """Return the name of the picture file for a view of a map file."""
    view_suffix = "" if view == DEFAULT_VIEW else f"-{view}"
    return f"{path.stem}{view_suffix}.{suffix}"


def figure_of(
    path: Path,
    *,
    view: str = DEFAULT_VIEW,
    dpi: int = DEFAULT_DPI,
    threshold: float | None = None,
    exclude_flagged: bool = False,
) -> Figure:
    """Return the figure that ``render_map`` writes.

    This function must be called in a ``with page_style()`` block.

    Raises:
        MapError: The map cannot be read, or has no data for this view.
    """
    patient_map = _read_for_view(path, view)
    if exclude_flagged:
        patient_map = map_reader.exclude_flagged(path, patient_map)
    names = [name for name in VIEWS[view] if _has_panel(patient_map, name)]
    if view == "quality" and names == ["tissue"]:
        raise MapError(
            f"{path}: has neither novelty nor quality flags; leave out --view quality, or make "
            "the map again"
        )
    panel_input = read_panel_input(
        path, patient_map, num_panels=len(names), dpi=dpi, threshold=threshold
    )
    panels = [PANELS[name](panel_input) for name in names]
    if len(panels) == 1:
        panels = [replace(panels[0], has_scale=True)]
    name = f"Patient {printable(patient_map.map_name, longest=_LONGEST)}"
    details = [_details(panel_input), NOTICE]
    if patient_map.caution:
        details.insert(0, f"CAUTION: this tissue is {patient_map.caution}.")
    return layout_page(panels, name=name, details=details)


def figure_of_slides(
    paths: Mapping[str, Path],
    *,
    patient: str,
    view: str = SLIDES_VIEW,
    dpi: int = DEFAULT_DPI,
    threshold: float | None = None,
) -> Figure:
    """Return a figure with one panel for each slide of a patient; see ``figure_of``.

    Args:
        paths: Map file of each slide, by slide name.
        patient: Patient id, for the heading.
        view: Name of a view with one panel.
        dpi: Resolution of the figure.
        threshold: Lowest probability at which a patch is called IDC; None means the threshold of
            each map.

    Raises:
        MapError: A map cannot be read or has no data for this view, the view has several panels,
            or the patient has too many slides for one page.
    """
    if len(VIEWS[view]) > 1:
        views = ", ".join(name for name, panels in VIEWS.items() if len(panels) == 1)
        raise MapError(f"view {view} has several panels; for several slides, give one of {views}")
    if len(paths) > _MAX_SLIDES:
        raise MapError(
            f"patient {patient} has {len(paths)} slides, but a page has space for {_MAX_SLIDES}; "
            "draw the slides one by one"
        )
    (panel_name,) = VIEWS[view]
    panels: list[Panel] = []
    details = [NOTICE]
    for name, path in paths.items():
        patient_map = _read_for_view(path, view)
        panel_input = read_panel_input(
            path, patient_map, num_panels=len(paths), dpi=dpi, threshold=threshold
        )
        panel = PANELS[panel_name](panel_input)
        title = printable(name, longest=_LONGEST // 2)
        if patient_map.caution:
            title += " (CAUTION)"
            details = ["CAUTION: the picture of a marked slide has the reason.", NOTICE]
        panels.append(replace(panel, title=title, has_scale=False))
    heading = f"Patient {printable(patient, longest=_LONGEST)}: {panel.title}"
    return layout_page(panels, name=heading, details=[f"{len(paths)} slides", *details])


def _read_for_view(path: Path, view: str) -> PatientMap:
    patient_map = read_map(path)
    if view == "cam" and patient_map.cam is None:
        raise MapError(
            f"{path}: has no CAM; leave out --view cam, or make the map again with a CAM"
        )
    return patient_map


def read_panel_input(
    path: Path,
    patient_map: PatientMap,
    *,
    num_panels: int = 1,
    dpi: int = DEFAULT_DPI,
    threshold: float | None = None,
) -> PanelInput:
    """Read the input of the panels. The picture of the tissue is shrunk to the size on the page.

    Args:
        path: Map file.
        patient_map: Map in this file, as ``read_map`` returns it.
        num_panels: Number of panels on the page.
        dpi: Resolution of the page.
        threshold: Lowest probability at which a patch is called IDC; None means the threshold of
            the map.
    """
    first_row, first_col = patient_map.row_col.min(axis=0)
    cropped = crop_to_patches(patient_map)
    rows, cols = cropped.shape
    width, _ = fit_panel((cols, rows), num_panels)
    cell_px = int(np.clip(np.ceil(to_px(width, dpi=dpi) / cols), 1, patient_map.cell_px))
    strips = [
        # Each row of cells is shrunk separately, so that no cell is shifted.
        downscale(strip[:, first_col * cropped.cell_px :], height=cell_px, width=cols * cell_px)
        for strip in islice(read_image_rows(path), first_row, None)
    ]
    return PanelInput(
        patient_map=cropped,
        tissue=np.concatenate(strips) if strips else _gray_patches(cropped, cell_px),
        has_image=bool(strips),
        cell_px=cell_px,
        threshold=patient_map.threshold if threshold is None else threshold,
    )


def _has_panel(patient_map: PatientMap, name: str) -> bool:
    if name == "labels":
        return has_labels(patient_map)
    needed = {"cam over tissue": "cam"}.get(name, name)
    return getattr(patient_map, needed, True) is not None


def _gray_patches(patient_map: PatientMap, cell_px: int) -> Pixels:
    cells = np.full((*patient_map.shape, 3), _WHITE, np.uint8)
    cells[tuple(patient_map.row_col.T)] = _NO_IMAGE
    return cells.repeat(cell_px, axis=0).repeat(cell_px, axis=1)


def _details(panel_input: PanelInput) -> str:
    patient_map, model = panel_input.patient_map, panel_input.patient_map.model
    num = len(patient_map.probability)
    called = (patient_map.probability >= panel_input.threshold).mean()
    architecture = printable(model.get("architecture"), longest=_LONGEST)
    role = printable(role_text(model), longest=_LONGEST)
    resolution = printable(patient_map.resolution, longest=2 * _LONGEST)
    excluded = "; regions leave out flagged patches" if patient_map.exclude_flagged else ""
    return (
        f"{num:,} {'patch' if num == 1 else 'patches'}, {called:.0%} called IDC at threshold "
        f"{panel_input.threshold:.2f}; {resolution}; "
        f"model {architecture}; {role}{excluded}"
    )
