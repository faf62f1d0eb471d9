"""Labels of patches from the outlines of a slide.

The share of a class is the fraction of a patch's area that is inside outlines of this class. If
outlines of several classes overlap, the overlap belongs to only one class: to "ignore" if one of
the classes is "ignore", else to IDC. Area outside all outlines is unannotated.

A patch gets the label of the class with the largest share if this share is at least ``min_share``.
If the share is smaller, the label is unknown. If two shares are equal (for example 0.5 and 0.5),
the patch gets the first of ignore, IDC, non-IDC and unannotated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import DataError
from wsi_idc.slides.annotations import (
    IDC,
    IGNORE,
    NON_IDC,
    UNANNOTATED,
    Annotation,
    check_classes,
    target_of,
)

UNKNOWN, LEFT_OUT = -1, -2
SHARES = (NON_IDC, IDC, IGNORE, UNANNOTATED)  # columns of the shares; columns 0 and 1 are labels
_LABELS = {NON_IDC: 0, IDC: 1, IGNORE: LEFT_OUT, "unknown": UNKNOWN, "skip": LEFT_OUT}
_PRECEDENCE = (IGNORE, IDC, NON_IDC)
# Shares that are equal in exact arithmetic differ by rounding errors below this value.
_TOLERANCE = 1e-9
# Maximum of (outline points * boxes) for which ``_measure`` does not divide the boxes further.
_LEAF_WORK = 50_000
# Outlines are clipped to an area plus a margin of this fraction of the area's side. It has many
# digits, because ``clip_by_rect`` can be wrong if a point is exactly on an edge of the area.
_MARGIN = 0.0123456789


def needs_choice(annotations: Sequence[Annotation], table: Mapping[str, str]) -> bool:
    """Return whether the user must define non-IDC, because no outline has this target."""
    return not any(target_of(annotation.name, table) == NON_IDC for annotation in annotations)


def choose_unannotated(
    annotations: Sequence[Annotation], table: Mapping[str, str], chosen: str | None
) -> str:
    """Return the label of unannotated tissue: the label that the user chose, else "unknown".

    Args:
        annotations: Annotations of all slides.
        table: Result of ``class_table``.
        chosen: Value of ``--unannotated``; None if the user gave no value.

    Raises:
        DataError: The user made no choice, and no outline has the target non-IDC.
    """
    if chosen is None and needs_choice(annotations, table):
        raise DataError(
            "the annotations have no outline of non-IDC; give --unannotated non-IDC if all tumor "
            "is outlined, else unknown (tissue without a label) or skip (no patches there)"
        )
    return chosen or "unknown"


def label_patches(
    annotations: Sequence[Annotation],
    table: Mapping[str, str],
    boxes: NDArray[np.float64],
    *,
    min_share: float = 0.5,
    unannotated: str = "unknown",
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Label patches by the share of their area under each class; see the module's docstring.

    Args:
        annotations: Annotations of the slide.
        table: Result of ``class_table``.
        boxes: Left, top, right and bottom of each patch in level-0 px, shape (N, 4).
        min_share: Minimum share of the class that labels a patch, above 0 and up to 1.
        unannotated: With "non-IDC", unannotated area is added to the share of non-IDC. With
            "unknown" or "skip", unannotated area is a class. The patches of this class get the
            label unknown ("unknown") or left out ("skip").

    Returns:
        Labels, shape (N,): 1 IDC, 0 non-IDC, -1 unknown (``UNKNOWN``), -2 left out (``LEFT_OUT``).
        Shares, shape (N, 4), with the columns ``SHARES``; the sum of a row is 1.

    Raises:
        DataError: The table has no row for a class.
    """
    check_classes(annotations, table)
    pieces = {target: _geometries(annotations, table, target) for target in _PRECEDENCE}
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    share_of = np.zeros((len(boxes), len(_PRECEDENCE)))
    if len(boxes):
        _measure(pieces, boxes, np.arange(len(boxes)), share_of)
    shares = np.empty((len(boxes), len(SHARES)))
    for column, target in enumerate(_PRECEDENCE):
        shares[:, SHARES.index(target)] = share_of[:, column]
    shares[:, -1] = np.clip(1 - share_of.sum(axis=1), 0, 1)
    return _decide(shares, min_share=min_share, unannotated=unannotated), shares


def _geometries(
    annotations: Sequence[Annotation], table: Mapping[str, str], target: str
) -> NDArray[Any]:
    chosen = [item.geometry for item in annotations if target_of(item.name, table) == target]
    array = np.empty(len(chosen), dtype=object)
    array[:] = chosen
    return array


def _decide(shares: NDArray[np.float64], *, min_share: float, unannotated: str) -> NDArray[np.int8]:
    """Return the label of each patch, shape (N,), from its shares, shape (N, 4)."""
    non_idc, idc, ignore, rest = shares.T
    classes = [(ignore, IGNORE), (idc, IDC), (non_idc, NON_IDC), (rest, unannotated)]
    if unannotated == NON_IDC:
        classes = [(ignore, IGNORE), (idc, IDC), (non_idc + rest, NON_IDC)]
    labels = np.full(len(shares), UNKNOWN, np.int8)
    best = np.full(len(shares), min_share - _TOLERANCE)
    for share, name in classes:
        is_best = share >= best
        labels[is_best] = _LABELS[name]
        # A later class must be larger by more than a rounding error.
        best[is_best] = share[is_best] + _TOLERANCE
    return labels


def _measure(
    pieces: Mapping[str, NDArray[Any]],
    boxes: NDArray[np.float64],
    index: NDArray[np.intp],
    share_of: NDArray[np.float64],
) -> None:
    """Compute the shares in ``boxes[index]`` and write them into ``share_of[index]``.

    The function divides the boxes into two groups and calls itself for each group, until a group
    has few outline points. Each call clips the outlines to the area of its group. Therefore the
    time grows with the number of points, and not with this number times the number of patches.
    """
    import shapely

    chosen = boxes[index]
    left, top = chosen[:, :2].min(axis=0)
    right, bottom = chosen[:, 2:].max(axis=0)
    margin = _MARGIN * max(right - left, bottom - top)
    area = shapely.box(left - margin, top - margin, right + margin, bottom + margin)
    clipped = {}
    for column, target in enumerate(_PRECEDENCE):
        geometries = _clip(pieces[target], area)
        clipped[target] = geometries
        is_first = not any(len(clipped[other]) for other in _PRECEDENCE[:column])
        if is_first and (shapely.area(geometries) >= area.area * (1 - 1e-12)).any():
            share_of[index, column] = 1
            return
    num_points = sum(shapely.get_num_coordinates(one).sum() for one in clipped.values())
    if num_points * len(index) <= _LEAF_WORK or len(index) == 1:
        share_of[index] = _shares_of_boxes(clipped, chosen)
        return
    axis = int(right - left < bottom - top)
    order = np.argsort(chosen[:, axis] + chosen[:, axis + 2], kind="stable")
    for half in np.array_split(order, 2):
        _measure(clipped, boxes, index[half], share_of)


def _clip(geometries: NDArray[Any], area: Any) -> NDArray[Any]:
    """Return the parts of geometries that are inside ``area``."""
    import shapely

    if not len(geometries):
        return geometries
    left, top, right, bottom = shapely.bounds(geometries).T
    x0, y0, x1, y1 = area.bounds
    touches = (left < x1) & (right > x0) & (top < y1) & (bottom > y0)
    geometries = geometries[touches]
    inside = ((left >= x0) & (right <= x1) & (top >= y0) & (bottom <= y1))[touches]
    parts = geometries.copy()
    parts[~inside] = _intersection(geometries[~inside], area)
    parts = shapely.get_parts(parts)
    return parts[shapely.area(parts) > 0]


def _intersection(geometries: NDArray[Any], area: Any) -> NDArray[Any]:
    """Return the part of each geometry that is inside the rectangle ``area``.

    ``clip_by_rect`` is fast. If its result is invalid, ``intersection`` is used.
    """
    import shapely

    try:
        parts = shapely.clip_by_rect(geometries, *area.bounds)
    except shapely.errors.GEOSException:
        return shapely.intersection(geometries, area)
    invalid = ~shapely.is_valid(parts)
    parts[invalid] = shapely.intersection(geometries[invalid], area)
    return parts


def _shares_of_boxes(
    pieces: Mapping[str, NDArray[Any]], boxes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the shares of ignore, IDC and non-IDC in each box, shape (N, 3)."""
    import shapely

    shapes = shapely.box(*boxes.T)
    shares = np.zeros((len(boxes), len(_PRECEDENCE)))
    covered = shapely.Polygon()
    for column, target in enumerate(_PRECEDENCE):
        if not len(pieces[target]):
            continue
        union = shapely.union_all(pieces[target])
        own = shapely.difference(union, covered)
        covered = shapely.union(covered, union)
        shares[:, column] = shapely.area(shapely.intersection(own, shapes)) / shapely.area(shapes)
    return shares


def annotation_mask(
    annotations: Sequence[Annotation], shape: tuple[int, int], scale: tuple[float, float]
) -> NDArray[np.bool_]:
    """Draw the outlines of all classes as a mask.

    Args:
        annotations: Annotations of the slide.
        shape: Rows and columns of the mask.
        scale: Width and height of a level-0 px in px of the mask.

    Returns:
        Mask of ``shape``, bool: whether the center of each px is in an outline.
    """
    import shapely

    mask = np.zeros(shape, bool)
    for polygon in shapely.get_parts([item.geometry for item in annotations]):
        rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(polygon)]
        _fill(mask, [ring * scale - 0.5 for ring in rings])  # the centers of px become integers
    return mask


def _fill(mask: NDArray[np.bool_], rings: Sequence[NDArray[np.float64]]) -> None:
    """Set the px whose centers are inside an odd number of closed rings.

    A center is inside if an odd number of edges cross its px row to the left of the center.
    """
    rows, cols = mask.shape
    x0, y0 = np.concatenate([ring[:-1] for ring in rings]).T
    x1, y1 = np.concatenate([ring[1:] for ring in rings]).T
    first, end = (
        np.clip(np.ceil(side(y0, y1)), 0, rows).astype(np.int64)
        for side in (np.minimum, np.maximum)
    )
    num = end - first  # rows that each edge crosses
    edge = np.repeat(np.arange(len(num)), num)
    if not len(edge):
        return
    row = np.arange(len(edge)) + np.repeat(end - np.cumsum(num), num)
    x = x0[edge] + (row - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    col = np.clip(np.ceil(x), 0, cols).astype(np.int64)
    top, bottom = row.min(), row.max() + 1
    cells = (row - top) * (cols + 1) + col
    crossings = np.bincount(cells, minlength=(bottom - top) * (cols + 1))
    mask[top:bottom] |= np.cumsum(crossings.reshape(-1, cols + 1)[:, :cols], axis=1) % 2 == 1
