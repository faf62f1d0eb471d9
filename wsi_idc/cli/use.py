"""``wsi-idc use``: choose the default checkpoint."""

from pathlib import Path

import click

from wsi_idc.cli.inputs import find_checkpoints
from wsi_idc.cli.options import PATH
from wsi_idc.cli.output import echo
from wsi_idc.core.constants import DEFAULT_RUNS
from wsi_idc.core.errors import RunError
from wsi_idc.models.checkpoint_files import BUNDLED
from wsi_idc.training.runs import DEFAULT, Run, set_default


@click.command()
@click.argument("run", metavar="RUN|bundled", type=PATH)
def use(run: Path) -> None:
    """Choose the checkpoint that commands use by default.

    RUN is a run directory or a .pt file. The command writes the path of RUN into the file
    runs/default. "bundled" removes this file, so that commands use the bundled model. wsi-idc train
    also writes this file when a training is finished; wsi-idc job, search and demo do not write it.

    \b
    Examples:
      wsi-idc use runs/mine
      wsi-idc use bundled
    """
    if Run(run).exists() and not Run(run).is_finished():
        raise RunError(f"{run}: the training is not finished; run the same wsi-idc train again")
    (path,) = find_checkpoints([run])
    set_default(DEFAULT_RUNS, None if str(run) == BUNDLED else run)
    named = "no longer exists" if str(run) == BUNDLED else f"names {run}"
    echo(f"default checkpoint: {path}")
    echo(f"{DEFAULT_RUNS / DEFAULT} {named}")
