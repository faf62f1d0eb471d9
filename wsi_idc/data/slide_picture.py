"""Picture of a slide with outlines, tissue mask and labelled patches, to check the labels."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from wsi_idc.slides.annotations import IDC, IGNORE, NON_IDC, Annotation, target_of
from wsi_idc.slides.labels import LEFT_OUT
from wsi_idc.slides.slide import Slide

_SIDE_PX = 1400
_MARGIN_PX = 40
_FONT_PX = 15
_FILL = 0.4  # opacity of the color of a labelled patch
_COLORS = {IDC: "#c2410c", NON_IDC: "#2f6db3", IGNORE: "#555555", "tissue": "#2a9d6f"}
_PATCH_COLORS = {1: _COLORS[IDC], 0: _COLORS[NON_IDC], -1: "#ffffff"}
_LEGEND = (
    (_COLORS[IDC], "IDC"),
    (_COLORS[NON_IDC], "non-IDC"),
    (_COLORS[IGNORE], "ignored"),
    (_COLORS["tissue"], "edge of the tissue"),
)


def slide_picture(
    slide: Slide,
    tissue: NDArray[np.bool_],
    annotations: Sequence[Annotation],
    classes: Mapping[str, str],
    *,
    coords: NDArray[np.int32],
    label: NDArray[np.int8],
    side: float,
) -> bytes:
    """Draw outlines, tissue and labelled patches on a thumbnail of a slide; return a PNG file.

    Args:
        slide: The slide.
        tissue: Mask of the tissue on the complete slide, shape (h, w), bool; h and w may be any.
        annotations: Annotations of the slide.
        classes: Result of ``class_table``: the target (such as "IDC") of each annotation class.
        coords: x and y of the top left corner of each patch in level-0 px, shape (N, 2).
        label: Label of each patch, shape (N,): 1 IDC, 0 non-IDC, -1 unknown, -2 left out.
        side: Side of a patch in level-0 px.
    """
    thumbnail = slide.thumbnail(_SIDE_PX)
    height, width = thumbnail.shape[:2]
    scale = np.array([width / slide.width, height / slide.height])
    colored = thumbnail.copy()
    # The label of each px is that of the cell at the center of the px.
    rows, cols = (
        ((np.arange(n) + 0.5) / (side * s)).astype(int)
        for n, s in ((height, scale[1]), (width, scale[0]))
    )
    grid = np.full((rows[-1] + 1, cols[-1] + 1), LEFT_OUT, np.int8)
    cell = np.rint(coords[:, ::-1] / side).astype(int)
    is_drawn = (cell < grid.shape).all(axis=1)
    grid[tuple(cell[is_drawn].T)] = label[is_drawn]
    codes = grid[np.ix_(rows, cols)]
    for value, patch_color in _PATCH_COLORS.items():
        colored[codes == value] = ImageColor.getrgb(patch_color)
    picture = cv2.addWeighted(colored, _FILL, thumbnail, 1 - _FILL, 0)
    mask = cv2.resize(tissue.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, ImageColor.getrgb(_COLORS["tissue"]), 1)
    for annotation in annotations:
        if color := _COLORS.get(target_of(annotation.name, classes) or ""):
            rings = [np.rint(ring * scale).astype(np.int32) for ring in _rings(annotation)]
            cv2.polylines(picture, rings, True, ImageColor.getrgb(color), 2, cv2.LINE_AA)
    return _with_legend(picture, label)


def _rings(annotation: Annotation) -> list[NDArray[np.float64]]:
    """Return the outer and inner rings of an annotation. A ring is an array, shape (N, 2)."""
    import shapely

    polygons = shapely.get_parts(annotation.geometry)
    return [shapely.get_coordinates(ring) for ring in shapely.get_rings(polygons)]


def _with_legend(picture: NDArray[np.uint8], label: NDArray[np.int8]) -> bytes:
    counts = {1: "IDC", 0: "non-IDC", -1: "unknown"}
    text = ", ".join(f"{int((label == code).sum()):,} {name}" for code, name in counts.items())
    height, width = picture.shape[:2]
    page = Image.new("RGB", (max(width, 620), height + _MARGIN_PX), "white")
    page.paste(Image.fromarray(picture), (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(_FONT_PX)
    x, y = 8, height + (_MARGIN_PX - _FONT_PX) // 2
    for color, name in _LEGEND:
        draw.rectangle((x, y + 2, x + 12, y + 14), fill=color)
        draw.text((x + 18, y - 1), name, fill="black", font=font)
        x += 30 + int(draw.textlength(name, font=font))
    draw.text((x + 10, y - 1), f"patches: {text}", fill="black", font=font)
    _, png = cv2.imencode(".png", cv2.cvtColor(np.asarray(page), cv2.COLOR_RGB2BGR))
    return png.tobytes()
