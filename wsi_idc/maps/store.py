"""The map file: one patient's probabilities and CAMs in HDF5, by one schema.

The groups ``/map`` and ``/cam`` are NeXus NXdata, so H5Web and silx open the file as a picture;
``/coords`` carries the attributes by which CLAM, TRIDENT and WSInfer read theirs.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import MapError, first_line
from wsi_idc.core.files import plain_name, write_bytes
from wsi_idc.core.hdf5 import attributes, check_heaps
from wsi_idc.maps.map_reader import image_of, read_all_but_cams, read_content
from wsi_idc.maps.map_writer import write_content
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.maps.schema import FORMAT

# Lies among the maps and is none: the table of a cohort (maps/cohort_store.py).
COHORT_H5 = "cohort.h5"

# What h5py and numpy raise at a file that is damaged, or made to deceive.
UNREADABLE = (
    *(OSError, KeyError, IndexError, ValueError, TypeError, AttributeError),
    *(RuntimeError, OverflowError, MemoryError),
)
_MAX_IMAGE_BYTES = 2**32  # that is read at one go

ReadRows = Callable[[int, int | None], NDArray[np.uint8]]


def map_path(folder: Path, patient: str) -> Path:
    """Return the map file of a patient in ``folder``.

    Raises:
        DataError: The id could lead out of the folder.
    """
    return folder / f"{plain_name(patient)}.h5"


def map_paths(folder: Path) -> list[Path]:
    """Return the files of a folder that should be maps, usable or not, by name."""
    found = sorted(folder.glob("*.h5"))
    return [path for path in found if path.name != COHORT_H5 or is_map(path)]


def write_map(path: Path, content: PatientMap) -> None:
    """Write a map file in one atomic step.

    Raises:
        BusyError: Another process is writing the same map.
    """
    # In memory first: HDF5 may crash the process when the disk fills up under it.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        write_content(file, content)
        file.attrs["complete"] = 1
        file.flush()
        data = file.id.get_file_image()
    write_bytes(path, data)


def read_map(path: Path) -> PatientMap:
    """Read a map file, all but its image.

    Raises:
        MapError: It is missing, damaged, or something else.
    """
    with _opened(path) as file:
        return read_content(file)


def read_image(path: Path) -> NDArray[np.uint8] | None:
    """Read the stitched tissue, shape (rows * cell_px, cols * cell_px, 3), None if left out.

    Raises:
        MapError: The map is missing, damaged, or something else.
    """
    with open_image(path) as read_rows:
        return read_rows(0, None) if read_rows else None


@contextmanager
def open_image(path: Path) -> Iterator[ReadRows | None]:
    """Yield what reads rows of px of the stitched tissue, None if it was left out.

    A whole slide's may be gigabytes. ``read_rows(first, last)`` returns shape (last - first,
    cols * cell_px, 3), uint8; a ``last`` of None means to the end.

    Raises:
        MapError: The map is missing, damaged, or something else.
    """
    # What goes wrong in the caller's block is no fault of the map.
    with ExitStack() as stack:
        with _in_one_line(path):
            file = stack.enter_context(_file(path))
            image = image_of(file, read_all_but_cams(file))
        yield None if image is None else partial(_read_rows, path, image)


def _read_rows(path: Path, image: h5py.Dataset, first: int, last: int | None) -> NDArray[np.uint8]:
    with _in_one_line(path):
        if last is None and image.nbytes > _MAX_IMAGE_BYTES:
            raise ValueError(f"an image of {image.nbytes / 1e9:.0f} GB is too large to show")
        return image[first:last]


def read_image_rows(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the stitched tissue a row of cells at a time; nothing if it was left out.

    Each is of shape (cell_px, cols * cell_px, 3).

    Raises:
        MapError: The map is missing, damaged, or something else.
    """
    content = read_map(path)
    side = content.cell_px
    with open_image(path) as read_rows:
        for row in range(content.shape[0] if read_rows else 0):
            assert read_rows is not None
            yield read_rows(row * side, (row + 1) * side)


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Return what made a map; None where there is no file. All but the CAMs is read and checked.

    Raises:
        MapError: The file is no complete map, so it is not ours to replace.
    """
    if not path.exists():
        return None
    with _opened(path) as file:
        return dict(read_all_but_cams(file).provenance)


def is_map(path: Path) -> bool:
    """Return whether a file says of itself that it is a map."""
    try:
        with _file(path) as file:
            return str(attributes(file).get("format")) == FORMAT
    except UNREADABLE:
        return False


def _file(path: Path) -> h5py.File:
    check_heaps(path)
    # A reader asks for no lock: many network disks have none.
    return h5py.File(path, "r", locking=False)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a map for reading; whatever is wrong with it becomes a MapError."""
    with _in_one_line(path), _file(path) as file:
        yield file


@contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with the map at ``path`` into a MapError."""
    try:
        yield
    except FileNotFoundError:
        raise MapError(f"{path}: no such file; make it with wsi-idc map") from None
    except IsADirectoryError:
        raise MapError(f"{path} is a folder; give a map file in it") from None
    except UNREADABLE as error:
        reason = first_line(error)
        raise MapError(f"{path}: not a usable map ({reason}); make it anew") from None
