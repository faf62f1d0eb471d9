"""Records of the slides from which the patches of a pack were cut."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core import hdf5
from wsi_idc.core.constants import POSSIBLE_MPP
from wsi_idc.core.files import safe_filename
from wsi_idc.core.hdf5 import DatasetSpec
from wsi_idc.geometry.bounds import Bounds

_MAX_SLIDES = 1_000_000
_THUMBNAIL_SIDE = (1, 8192)
_SLIDE_COLUMNS = {
    **dict.fromkeys(("name", "path", "mpp_source", "fingerprint"), "text"),
    **dict.fromkeys(("mpp",), "f8"),
    **dict.fromkeys(("width", "height"), "i4"),
}


@dataclass(frozen=True)
class PackedSlide:
    """A slide from which patches of a pack were cut.

    Attributes:
        name: Name of the slide; the slides of a patient have different names.
        path: Path of the slide file when the pack was made.
        mpp: Microns per level-0 px.
        mpp_source: Origin of ``mpp``: "file", "given", or a text such as "given, but the file
            states 0.5".
        width, height: Size of level 0 in px.
        bounds: Scanned area in level-0 px; None if the file states no bounds.
        fingerprint: Hexadecimal SHA-256 that changes if the slide file changes.
    """

    name: str
    path: str
    mpp: float
    mpp_source: str
    width: int
    height: int
    bounds: Bounds | None
    fingerprint: str


class Overview(NamedTuple):
    """Overview of a slide.

    Attributes:
        thumbnail: Thumbnail of the complete slide, shape (h, w, 3), uint8.
        tissue: Mask of the tissue in the thumbnail, shape (h, w), bool.
    """

    thumbnail: NDArray[np.uint8]
    tissue: NDArray[np.bool_]


def read_slides(file: h5py.File, index: pd.DataFrame) -> list[PackedSlide]:
    """Read the slides of a pack of version 2.

    Raises:
        ValueError: A slide has patches of several patients, or another record is impossible.
    """
    codes = index["slide"].to_numpy()
    if codes[0] != 0 or not np.isin(np.diff(codes), (0, 1)).all():
        raise ValueError("the values of /slide must start at 0 and increase by 0 or 1")
    if index.groupby("slide")["patient"].nunique().max() > 1:
        raise ValueError("a slide has several patients")
    num, low_high = int(codes[-1]) + 1, POSSIBLE_MPP
    if num > _MAX_SLIDES:
        raise ValueError(f"{num} slides are more than {_MAX_SLIDES}")
    limits = {"mpp": low_high, "width": (1, 2**31 - 1), "height": (1, 2**31 - 1)}
    specs = {
        f"slides/{name}": DatasetSpec(dtype, (num,), limits.get(name))
        for name, dtype in _SLIDE_COLUMNS.items()
    }
    columns = hdf5.read_datasets(file, specs | {"slides/bounds": DatasetSpec("i4", (num, 4))})
    slides = []
    for code in range(num):
        values = {name: columns[f"slides/{name}"][code] for name in _SLIDE_COLUMNS}
        bounds = Bounds(*(int(value) for value in columns["slides/bounds"][code]))
        slides.append(
            PackedSlide(
                name=safe_filename(str(values["name"])),
                path=str(values["path"]),
                mpp=float(values["mpp"]),
                mpp_source=str(values["mpp_source"]),
                width=int(values["width"]),
                height=int(values["height"]),
                bounds=bounds if min(bounds.width, bounds.height) > 0 else None,
                fingerprint=str(values["fingerprint"]),
            )
        )
    patient_of = index.groupby("slide")["patient"].first()
    if len({(patient_of[code], slide.name) for code, slide in enumerate(slides)}) < num:
        raise ValueError("two slides of a patient have the same name")
    return slides


def read_overview(file: h5py.File, code: int) -> Overview:
    """Read the thumbnail and the tissue mask of a slide; the first slide has the ``code`` 0."""
    side = _THUMBNAIL_SIDE
    tissue = hdf5.read_dataset(file, f"slides/tissue/{code}", DatasetSpec("u1", (side, side)))
    spec = DatasetSpec("u1", (*tissue.shape, 3))
    thumbnail = hdf5.read_dataset(file, f"slides/thumbnail/{code}", spec)
    return Overview(thumbnail, tissue.astype(bool))


def write_slides(
    group: h5py.Group, slides: Sequence[PackedSlide], overviews: Iterable[Overview]
) -> None:
    """Write the records, thumbnails and tissue masks of slides into an HDF5 group of a pack."""
    types = {"text": h5py.string_dtype()}
    for name, dtype in _SLIDE_COLUMNS.items():
        values = [getattr(slide, name) for slide in slides]
        group.create_dataset(name, data=values, dtype=types.get(dtype, dtype))
    bounds = [(0,) * 4 if slide.bounds is None else astuple(slide.bounds) for slide in slides]
    group["bounds"] = np.array(bounds, np.int32)
    for code, overview in enumerate(overviews):
        for name, picture in overview._asdict().items():
            data = np.asarray(picture, np.uint8)
            group.create_dataset(f"{name}/{code}", data=data, compression="gzip")


def rows_of_slides(index: pd.DataFrame, slides: list[PackedSlide]) -> Iterator[tuple[int, slice]]:
    """Yield the number of each slide, from 0, and the slice of its rows in ``index``."""
    ends = np.searchsorted(index["slide"], np.arange(len(slides) + 1))
    for code in range(len(slides)):
        yield code, slice(int(ends[code]), int(ends[code + 1]))
