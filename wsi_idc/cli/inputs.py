"""Find the checkpoints, patients, slides and map files that a command line names."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.options import TISSUE_PARAMETERS, changed
from wsi_idc.cli.output import echo_note
from wsi_idc.core.constants import DEFAULT_MAPS, DEFAULT_RUNS
from wsi_idc.core.errors import MapError
from wsi_idc.models.checkpoint_files import BUNDLED, bundled_checkpoint, check_checkpoint_file
from wsi_idc.training.runs import DEFAULT, Run, checkpoint_file, default_checkpoint

if TYPE_CHECKING:
    from wsi_idc.inference.predictor import Predictor
    from wsi_idc.maps.from_pack import PackSource
    from wsi_idc.maps.from_slides import SlideSource

logger = logging.getLogger(__name__)


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


def split_inputs(
    arguments: tuple[Path, ...], patients: tuple[str, ...], slides: tuple[Path, ...]
) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """Return the ids of all given patients, and the paths of all given slides.

    Args:
        arguments: Words without an option; each is the id of a patient, or a slide.
        patients: Values of ``--patient``: ids, separated by commas.
        slides: Values of ``--slide``.
    """
    texts = list(patients)
    paths = list(slides)
    for argument in arguments:
        # Files after --slide come from a pattern of the shell.
        if slides or len(argument.parts) > 1 or argument.suffix or argument.exists():
            paths.append(argument)
        else:
            texts.append(str(argument))
    ids = [name.strip() for text in texts for name in text.split(",")]
    return tuple(filter(None, ids)), tuple(paths)


def check_inputs(patients: tuple[str, ...], slides: tuple[Path, ...]) -> None:
    """Raise UsageError if the inputs of ``input_options`` are ambiguous, or an option is unused."""
    given = click.get_current_context().params
    for_slides = bool(slides or given["manifest"])
    for_patients = bool(patients or given["patients_file"])
    inputs = [for_patients, given["everyone"], bool(slides), bool(given["manifest"])]
    if sum(inputs) != 1:
        raise click.UsageError(
            "give patients (PATIENT... or --patients-file FILE), --all, slides (FILE...) or "
            "--manifest CSV; these four cannot be combined."
        )
    if not for_slides and (unused := changed("mpp", "mask", "stride", *TISSUE_PARAMETERS)):
        raise click.UsageError(
            f"{', '.join(unused)} has no effect on a pack: its patches are already cut."
        )
    if for_slides and changed("data"):
        # An id is taken for a slide if it has a dot, or if a folder has the same name.
        names = [str(path) for path in given["files"] if len(path.parts) == 1]
        hint = f"; if {names[0]} is a patient, give --patient {names[0]}" if names else ""
        raise click.UsageError(f"--data is for patients of a pack, not for slides{hint}.")


def open_source(patients: tuple[str, ...], slides: tuple[Path, ...]) -> "PackSource | SlideSource":
    """Open the slides, or the patients of the data, that the command line names.

    The arguments are the results of ``split_inputs``. The other values are those of
    ``input_options``, ``slide_options`` and ``data_option``. An unknown patient is an error before
    torch is imported.
    """
    from wsi_idc.maps.plan import parse_shard

    given = click.get_current_context().params
    part = None if given["shard"] is None else parse_shard(given["shard"])
    source: PackSource | SlideSource
    if slides or given["manifest"]:
        source = _slide_source(slides, given)
    else:
        source = _pack_source(patients, given)
    return source if part is None else source.shard(*part)


def _pack_source(patients: tuple[str, ...], given: Mapping[str, Any]) -> "PackSource":
    from wsi_idc.data.open_data import open_data
    from wsi_idc.data.splits import read_patients

    pack = open_data(given["data"])
    logger.info("data: %s", pack)
    if given["patients_file"] is not None:
        patients += tuple(read_patients(given["patients_file"]))
    for patient in patients:
        pack.rows_of(patient)  # raises an error for an unknown id

    from wsi_idc.maps.from_pack import PackSource

    return PackSource(pack, pack.patients if given["everyone"] else patients)


def _slide_source(slides: tuple[Path, ...], given: Mapping[str, Any]) -> "SlideSource":
    from wsi_idc.maps.from_slides import SlideSource
    from wsi_idc.slides.tiling import SlideSettings

    tissue = {name: given[name] for name in TISSUE_PARAMETERS}
    settings = SlideSettings(
        mpp=given["mpp"], mask=given["mask"], stride_px=given["stride"], **tissue
    )
    return SlideSource.from_files(slides, given["manifest"], settings)
