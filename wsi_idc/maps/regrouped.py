"""Find maps whose slides now belong to other patients."""

from collections.abc import Collection
from pathlib import Path

from wsi_idc.core.errors import MapError
from wsi_idc.maps.map_reader import is_map, read_provenance

_PICTURES = (".png", ".pdf")


def find_regrouped(
    folder: Path, names: Collection[str], slides: Collection[Path] = ()
) -> list[Path]:
    """Return the outdated maps in a folder, and the pictures beside them.

    A map is outdated if its slide now has another map name, or if the map is in the folder of a
    patient of ``names`` who no longer has this slide. Maps of unknown slides and patients are not
    returned, because these maps may be of other data.

    Args:
        folder: Folder of the maps.
        names: Names of all current maps: PATIENT or PATIENT/SLIDE.
        slides: Slide files of these maps.
    """
    names = set(names)
    patients = {name.partition("/")[0] for name in names}
    slide_names = {name.partition("/")[2] for name in names} - {""}
    slide_files = {slide.resolve() for slide in slides}
    found = []
    for path in sorted([*folder.glob("*.h5"), *folder.glob("*/*.h5")]):
        name = path.relative_to(folder).with_suffix("").as_posix()
        patient, slash, slide = name.rpartition("/")
        if name in names or not is_map(path):
            continue
        is_moved = slide in slide_names or (bool(slash) and slide in patients)
        if is_moved or patient in patients or (slide_files and _slide_of(path) in slide_files):
            beside = path.parent.glob("*.*")
            pictures = (file for file in beside if file.suffix in _PICTURES)
            starts = (f"{path.stem}.", f"{path.stem}-")  # -VIEW follows the name of the map
            found += [path, *sorted(file for file in pictures if file.name.startswith(starts))]
    return found


def _slide_of(path: Path) -> Path | None:
    """Return the slide file of a map; None if the map is unusable or is not of a slide file."""
    try:
        data = (read_provenance(path) or {}).get("data")
    except MapError:
        return None
    return Path(data).resolve() if isinstance(data, str) else None
