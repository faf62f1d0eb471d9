"""Find the checkpoints and the map files that a command line names."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_idc.cli.output import echo_note
from wsi_idc.core.constants import DEFAULT_MAPS, DEFAULT_RUNS
from wsi_idc.core.errors import MapError
from wsi_idc.models.checkpoint_files import BUNDLED, bundled_checkpoint, check_checkpoint_file
from wsi_idc.training.runs import DEFAULT, Run, checkpoint_file, default_checkpoint

if TYPE_CHECKING:
    from wsi_idc.inference.predictor import Predictor


def open_predictor(paths: Sequence[Path], *, tta: bool, smooth: bool | None) -> "Predictor":
    """Read the checkpoints in ``paths``; return one predictor that uses all of them."""
    from wsi_idc.inference.predictor import Predictor
    from wsi_idc.models.checkpoint import load_finished_checkpoint

    return Predictor(tuple(map(load_finished_checkpoint, paths)), tta=tta, smooth=smooth)


def find_checkpoints(checkpoints: Sequence[Path]) -> list[Path]:
    """Find and check the files of ``--checkpoint``, print their paths, and return the paths.

    If ``checkpoints`` is empty, the default checkpoint is used. This function imports no torch.
    """
    found = [_find(path) for path in checkpoints or (None,)]
    for path, reason in found:
        check_checkpoint_file(path)
        echo_note(f"checkpoint: {path} ({reason})")
    return [path for path, _ in found]


def _find(path: Path | None) -> tuple[Path, str]:
    default_file = DEFAULT_RUNS / DEFAULT
    if path is None or (path == default_file and not path.is_dir()):
        if default := default_checkpoint(DEFAULT_RUNS):
            reason = f"the default, set in {default_file}"
            if default.name == Run(default.parent).replaced.name:
                reason += "; the new training of this run is not finished"
            return default, reason
        return bundled_checkpoint(), f"the bundled model; there is no {default_file}"
    if str(path) == BUNDLED:
        return bundled_checkpoint(), "the bundled model"
    return checkpoint_file(path), "as given"


def find_maps(paths: Sequence[Path]) -> list[Path]:
    """Find the map files in ``paths`` (files and folders), or in maps/ if ``paths`` is empty.

    A patient file is replaced by the maps of the patient's slides. Cohort files are left out: if
    a user gives ``maps/*.h5``, the shell adds cohort.h5 to ``paths``.
    """
    from wsi_idc.maps.cohort import is_cohort
    from wsi_idc.maps.map_reader import map_paths, maps_of

    lists = [map_paths(path) if path.is_dir() else maps_of(path) for path in paths]
    files = [path for files in lists for path in files] if paths else map_paths(DEFAULT_MAPS)
    maps = dict.fromkeys(path for path in files if not is_cohort(path))
    if not maps:
        where = ", ".join(map(str, paths)) or f"{DEFAULT_MAPS}/"
        raise MapError(f"no maps in {where}; make maps with wsi-idc map, or give other paths")
    return list(maps)
