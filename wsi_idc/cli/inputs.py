"""From what ``--checkpoint`` was given to what predicts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsi_idc.core.constants import DEFAULT_RUNS
from wsi_idc.core.errors import CheckpointError

if TYPE_CHECKING:
    from wsi_idc.inference.predictor import Predictor
    from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.core.constants import DEFAULT_MAPS
from wsi_idc.core.errors import MapError


def open_predictor(checkpoints: Sequence[Path], *, tta: bool, smooth: bool) -> "Predictor":
    """Read what ``predictor_options`` mean, and say which checkpoints they are.

    Raises:
        CheckpointError: One cannot be read or is not finished, or they do not go together.
    """
    from wsi_idc.inference.predictor import Predictor

    given: Sequence[Path | None] = checkpoints or (None,)
    return Predictor(tuple(open_checkpoint(one) for one in given), tta=tta, smooth=smooth)


def open_checkpoint(given: Path | None) -> "Checkpoint":
    """Read the checkpoint that ``--checkpoint`` means, and say which one it is.

    Raises:
        CheckpointError: It cannot be read, or its training is not finished.
    """
    from wsi_idc.models.checkpoint import load_checkpoint

    path, why = _find_checkpoint(given)
    click.echo(f"checkpoint: {path} ({why})", err=True)
    checkpoint = load_checkpoint(path)
    if not checkpoint.metrics:
        raise CheckpointError(
            f"{path}: its training is not finished, so it is not calibrated; run the same "
            "wsi-idc train again"
        )
    return checkpoint


def _find_checkpoint(given: Path | None) -> tuple[Path, str]:
    """Return the checkpoint file and why it is this one."""
    from wsi_idc.models.checkpoint_files import BUNDLED, bundled_checkpoint
    from wsi_idc.training.runs import newest_finished

    if given is None:
        run = newest_finished(DEFAULT_RUNS)
        if run:
            return run.best, "the newest finished run"
        return bundled_checkpoint(), "the bundled model; no run in runs/ is finished"
    if str(given) == BUNDLED:
        return bundled_checkpoint(), "the bundled model"
    if given.is_dir() and not (given / "best.pt").exists():
        raise CheckpointError(f"{given}: no best.pt in this folder; give a finished run")
    return (given / "best.pt" if given.is_dir() else given), "as given"


def map_files(given: Sequence[Path]) -> list[Path]:
    """Return files, the maps of folders, and without any those in maps/; no table of a cohort.

    Raises:
        MapError: There is none among them.
    """
    from wsi_idc.maps.cohort_file import is_cohort
    from wsi_idc.maps.map_reader import map_paths

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
