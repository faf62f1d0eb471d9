"""Draw a map as pictures: views of panels, PNG for the screen and PDF for print."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from wsi_idc import NOTICE
from wsi_idc.core.errors import MapError
from wsi_idc.maps.map_reader import read_image_rows, read_map
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.raster import Pixels, downscale
from wsi_idc.plotting.style import page_style, printable, save_pdf, save_png, to_px
from wsi_idc.render import panels
from wsi_idc.render.layout import PanelLayout, layout_page
from wsi_idc.render.panels import PanelInput, PanelMaker

DEFAULT_DPI = 300
DEFAULT_VIEW = "panels"
_SAVE = {".png": save_png, ".pdf": save_pdf}
FORMATS = tuple(suffix[1:] for suffix in _SAVE)
_LONGEST = 40
_WHITE, _NO_IMAGE = 255, 214


def render_map(
    path: Path,
    *outs: Path,
    view: str = DEFAULT_VIEW,
    dpi: int = DEFAULT_DPI,
    threshold: float | None = None,
) -> None:
    """Draw a view of the map file ``path`` as each of ``outs``.

    Args:
        path: The map.
        outs: PNG or PDF by their suffixes, each replaced in one atomic step.
        view: One of ``VIEWS``.
        dpi: Of the PNG, and of the pictures in the PDF.
        threshold: Probability from which a patch is called IDC; None takes the map's own.

    Raises:
        MapError: The map cannot be read, or has nothing to show in this view.
    """
    with page_style():
        figure = figure_of(path, view=view, dpi=dpi, threshold=threshold)
        for out in outs:
            _SAVE[out.suffix](figure, out, dpi=dpi)


def picture_name(path: Path, *, view: str, suffix: str) -> str:
    """Return the file name of a view of a map file."""
    part = "" if view == DEFAULT_VIEW else f"-{view}"
    return f"{path.stem}{part}.{suffix}"


def figure_of(
    path: Path, *, view: str = DEFAULT_VIEW, dpi: int = DEFAULT_DPI, threshold: float | None = None
) -> Figure:
    """Return the figure that ``render_map`` writes; call it in the style of a page.

    Raises:
        MapError: The map cannot be read, or has nothing to show in this view.
    """
    content = read_map(path)
    if view == "cam" and content.cam is None:
        raise MapError(
            f"{path}: made without a CAM; leave out --view cam, or make it anew with one"
        )
    makers = VIEWS[view](content)
    scene = read_scene(path, content, num_panels=len(makers), dpi=dpi, threshold=threshold)
    drawn = [maker(scene) for maker in makers]
    if len(drawn) == 1:
        drawn = [replace(drawn[0], has_scale=True)]
    name = f"Patient {printable(content.patient, longest=_LONGEST)}"
    return layout_page(drawn, name=name, details=[_details(scene), NOTICE])


def read_scene(
    path: Path,
    content: PatientMap,
    *,
    num_panels: int = 1,
    dpi: int = DEFAULT_DPI,
    threshold: float | None = None,
) -> PanelInput:
    """Return what the panels are drawn from, the tissue as large as they can show.

    Args:
        path: The map file.
        content: What ``read_map`` says of it.
        num_panels: How many share the page.
        dpi: How fine they are drawn.
        threshold: None takes the map's own.

    Raises:
        MapError: The map cannot be read.
    """
    first = content.row_col.min(axis=0)
    cropped = replace(content, row_col=content.row_col - first)
    rows, cols = cropped.shape
    width, _ = PanelLayout(num_panels).fit((cols, rows))
    cell_px = int(np.clip(np.ceil(to_px(width, dpi=dpi) / cols), 1, content.cell_px))
    image = _read_tissue(path, first, cropped, cell_px)
    return PanelInput(
        content=cropped,
        tissue=_patches_on_white(cropped, cell_px) if image is None else image,
        has_image=image is not None,
        cell_px=cell_px,
        threshold=content.threshold if threshold is None else threshold,
    )


def _read_tissue(
    path: Path, first: Sequence[int], cropped: PatientMap, cell_px: int
) -> Pixels | None:
    """Return the tissue from cell ``first`` on, each cell shrunk by itself; None if left out."""
    cols = cropped.shape[1]
    first_row, first_col = first
    strips = [
        downscale(strip[:, first_col * cropped.cell_px :], height=cell_px, width=cols * cell_px)
        for strip in islice(read_image_rows(path), first_row, None)
    ]
    return np.concatenate(strips) if strips else None


def _patches_on_white(content: PatientMap, cell_px: int) -> Pixels:
    cells = np.full((*content.shape, 3), _WHITE, np.uint8)
    cells[tuple(content.row_col.T)] = _NO_IMAGE
    return cells.repeat(cell_px, axis=0).repeat(cell_px, axis=1)


def _details(scene: PanelInput) -> str:
    content, model = scene.content, scene.content.model
    num = len(content.probability)
    called = (content.probability >= scene.threshold).mean()
    architecture = printable(model.get("architecture"), longest=_LONGEST)
    role = printable(model.get("role_of_patient"), longest=_LONGEST)
    source = printable(content.mpp_source, longest=_LONGEST)
    return (
        f"{num:,} {'patch' if num == 1 else 'patches'}, {called:.0%} called IDC at threshold "
        f"{scene.threshold:.2f}; {content.mpp:g} \N{MICRO SIGN}m/px ({source}); "
        f"model {architecture}, patient in its split: {role}"
    )


def _all_panels(content: PatientMap) -> list[PanelMaker]:
    makers = {
        panels.thumbnail: content.slide is not None,
        panels.tissue: True,
        panels.probability: True,
        panels.smoothed: content.smoothed is not None,
        panels.uncertainty: content.uncertainty is not None,
        panels.cam: content.cam is not None,
        panels.labels: panels.knows_labels(content),
    }
    return [maker for maker, has in makers.items() if has]


def _side_by_side(content: PatientMap) -> list[PanelMaker]:
    makers = {
        panels.tissue: True,
        panels.overlay: True,
        panels.cam_overlay: content.cam is not None,
        panels.labels: panels.knows_labels(content),
    }
    return [maker for maker, has in makers.items() if has]


VIEWS: dict[str, Callable[[PatientMap], list[PanelMaker]]] = {
    DEFAULT_VIEW: _all_panels,
    "overlay": lambda content: [panels.overlay],
    "contours": lambda content: [panels.contours],
    "cam": lambda content: [panels.cam_overlay],
    "side-by-side": _side_by_side,
}
