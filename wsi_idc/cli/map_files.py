"""From the MAPS that a command was given to map files."""

from collections.abc import Sequence
from pathlib import Path

from wsi_idc.core.errors import MapError
from wsi_idc.training.config import DEFAULT_MAPS


def map_files(given: Sequence[Path]) -> list[Path]:
    """Return files, the maps of folders, and without any those in maps/; no table of a cohort.

    Raises:
        MapError: There is none among them.
    """
    from wsi_idc.maps.cohort_file import is_cohort
    from wsi_idc.maps.store import map_paths

    if not given:
        found = map_paths(DEFAULT_MAPS)
    else:
        # A shell's *.h5 holds the table that lies among the maps.
        each = [map_paths(one) if one.is_dir() else [one] for one in given]
        found = [path for paths in each for path in paths if not is_cohort(path)]
    if not found:
        where = ", ".join(map(str, given)) or f"{DEFAULT_MAPS}/"
        raise MapError(f"no maps in {where}; make some with wsi-idc map, or name them")
    return list(dict.fromkeys(found))
