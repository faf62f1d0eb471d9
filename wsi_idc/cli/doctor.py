"""``wsi-idc doctor``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsi_idc.cli.options import PATH, data_option, json_option, logging_options
from wsi_idc.cli.output import echo, echo_json

if TYPE_CHECKING:
    from wsi_idc.doctor.check_result import CheckResult


@click.command()
@data_option
@click.option(
    "--out", type=PATH, default=".", help="Where results would go.  [default: the working folder]"
)
@json_option
@logging_options
def doctor(data: Path | None, out: Path, as_json: bool) -> None:
    """Say what this machine is like, for a bug report.

    Versions, cores, memory, GPUs, SLURM, disks, weights and data: each ok, a note, or a problem
    with what to do about it. It writes 64 MB into the folder of --out and removes them; it fetches
    nothing, packs nothing and always exits with 0.

    \b
    Examples:
      wsi-idc doctor
      srun --gres=gpu:1 wsi-idc doctor --out /scratch/me
    """
    from wsi_idc.doctor.doctor import run_checks

    found = list(run_checks(data=data, out=out))
    if as_json:
        counts = {f"num_{state}s": _num(found, state) for state in ("note", "problem")}
        echo_json({"findings": [asdict(one) for one in found], **counts})
        return
    width = max(len(one.name) for one in found)
    for one in found:
        echo(f"{one.state:<7}  {one.name:<{width}}  {one.value}")
    advised = [one for one in found if one.advice]
    for state in ("note", "problem"):
        for one in advised:
            if one.state == state:
                echo(f"{state}: {one.name}: {one.advice}")
    num = _num(found, "problem")
    echo("no problem found" if not num else f"{num} problem{'s' * (num > 1)} found")


def _num(found: "list[CheckResult]", state: str) -> int:
    return sum(one.state == state for one in found)
