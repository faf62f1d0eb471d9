"""Tissue under a map: the slide, or a picture from the map file if the slide is missing."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

from wsi_idc.core.errors import MapError, WsiIdcError
from wsi_idc.maps.coordinates import grid_transform
from wsi_idc.maps.map_reader import read_map_without_cams
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.maps.small_image import read_small_image
from wsi_idc.slides.slide import Slide, open_slide
from wsi_idc.view.catalog import Catalog, CatalogItem, find_slide
from wsi_idc.view.tiles import PictureReader, TiledSlide

logger = logging.getLogger(__name__)

_MAX_PICTURE_SIDE_PX = 8192
# Number of slides and pictures that stay open. A slide with its cache, or a picture of the largest
# size, needs about 200 MB.
_MAX_OPEN = 3


@dataclass(frozen=True)
class Tissue:
    """Tissue under a map, and the position of the map's grid on the tissue.

    Attributes:
        kind: "slide", "picture" (stitched patches), "thumbnail" or "blank" (white).
        tiles: Tiles of the tissue. A px of the tissue is a px of the largest level of tiles.
        x, y: Position of the top left corner of grid cell (0, 0) in px of the tissue.
        side: Side of a grid cell in px of the tissue.
        scale: Number of px of the tissue per level-0 px of the slide. If the map has no slide, this
            is the number of px of the tissue per px of a patch.
        left, top: Position of the tissue on the slide in level-0 px.
        note: Reason why the slide is not shown; may be empty.
    """

    kind: str
    tiles: TiledSlide
    x: float = 0.0
    y: float = 0.0
    side: float = 1.0
    scale: float = 1.0
    left: float = 0.0
    top: float = 0.0
    note: str = ""


def open_tissue(item: CatalogItem, catalog: Catalog) -> Tissue:
    """Open the tissue of an item.

    Raises:
        WsiIdcError: The map cannot be used, or the item has no map and its slide cannot be used.
    """
    if item.map_path is None:
        assert item.slide_path is not None
        return Tissue("slide", TiledSlide(open_slide(item.slide_path, mpp=catalog.mpp)))
    patient_map = read_map_without_cams(item.map_path)
    note = ""
    if patient_map.slide is not None:
        try:
            return _slide_tissue(patient_map, find_slide(patient_map, catalog))
        except (WsiIdcError, OSError) as error:
            note = str(error)
            logger.warning("%s: %s", item.name, error)
    return _stored_tissue(item.map_path, patient_map, note)


def _slide_tissue(patient_map: PatientMap, path: Path) -> Tissue:
    assert patient_map.slide is not None
    size, grid = patient_map.level0_size, grid_transform(patient_map, "level0")
    slide = open_slide(path, mpp=patient_map.slide.mpp)
    if (slide.width, slide.height) != size:
        slide.close()
        raise MapError(
            f"{path} has {slide.width} x {slide.height} px, but the slide of the map has "
            f"{size[0]} x {size[1]}; give the folder with the slide of the map as --slides"
        )
    return Tissue("slide", TiledSlide(slide), grid.x, grid.y, grid.side)


def _stored_tissue(path: Path, patient_map: PatientMap, note: str) -> Tissue:
    """Return the tissue that a map file contains."""
    grid = grid_transform(patient_map, "image" if patient_map.slide is None else "level0")
    rows, cols = patient_map.shape
    if (picture := read_small_image(path, _MAX_PICTURE_SIDE_PX)) is not None:
        side = picture.shape[0] / rows
        scale = side / grid.side
        tiles = _tile(path, picture, mpp=grid.mpp / scale)
        return Tissue("picture", tiles, 0, 0, side, scale, grid.x, grid.y, note)
    if patient_map.slide is not None:
        picture = patient_map.slide.thumbnail
        scale = picture.shape[1] / patient_map.slide.width
        tiles, place = _tile(path, picture, mpp=grid.mpp / scale), (grid.x * scale, grid.y * scale)
        return Tissue("thumbnail", tiles, *place, grid.side * scale, scale, note=note)
    height, width = (n * patient_map.cell_px for n in (rows, cols))
    picture = np.broadcast_to(np.uint8(255), (height, width, 3))
    note = "the map has no picture of the tissue; make the map again without --no-image"
    return Tissue("blank", _tile(path, picture, mpp=grid.mpp), 0, 0, grid.side, note=note)


def _tile(path: Path, picture: np.ndarray, *, mpp: float) -> TiledSlide:
    return TiledSlide(Slide(path, PictureReader(picture), mpp=mpp, mpp_source="map"))


@dataclass
class _Opened:
    tissue: Tissue | None = None
    num_users: int = 0
    lock: Lock = field(default_factory=Lock)


class OpenTissues:
    """Cache of open tissues of a catalog; the least recently used tissues are closed.

    Args:
        catalog: The catalog.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._opened: dict[int, _Opened] = {}  # in the order of use
        self._lock = Lock()

    @contextmanager
    def use(self, index: int) -> Iterator[Tissue]:
        """Open the tissue of item ``index`` and keep it open during the ``with`` block.

        Raises:
            WsiIdcError: The tissue cannot be opened.
        """
        with self._lock:
            opened = self._opened.pop(index, None) or _Opened()
            self._opened[index] = opened
            opened.num_users += 1
            self._close_old(_MAX_OPEN)
        try:
            with opened.lock:  # opening may take long, so only this tissue is locked
                if opened.tissue is None:
                    opened.tissue = open_tissue(self._catalog.items[index], self._catalog)
            yield opened.tissue
        finally:
            with self._lock:
                opened.num_users -= 1

    def close(self) -> None:
        """Close the slide files. Call this method after the last call of ``use``."""
        with self._lock:
            self._close_old(0)

    def _close_old(self, max_open: int) -> None:
        idle = [index for index, opened in self._opened.items() if opened.num_users == 0]
        for index in idle[: max(0, len(self._opened) - max_open)]:
            if (tissue := self._opened.pop(index).tissue) is not None:
                tissue.tiles.slide.close()
