"""``wsi-idc doctor``: describe this machine and the installation."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsi_idc.cli.options import PATH, data_option, output_options
from wsi_idc.cli.output import echo_result, hanging_lines

if TYPE_CHECKING:
    from wsi_idc.doctor.doctor import CheckResult


@click.command()
@data_option
@click.option(
    "--out", type=PATH, default=".", help="Folder whose disk is tested.  [default: the current one]"
)
@output_options
def doctor(data: Path | None, out: Path, as_json: bool) -> None:
    """Describe this machine and this installation.

    The result is for a bug report. The command checks versions, cores, memory, GPUs, SLURM, disks,
    weights and data. The result of each check is "ok", "note" or "problem". Each problem has
    advice. To test the disk, the command writes a 64 MB file into the folder of --out and removes
    it. The command downloads nothing, packs nothing and always exits with 0.

    \b
    Examples:
      wsi-idc doctor
      srun --gres=gpu:1 wsi-idc doctor --out /scratch/me
    """
    from wsi_idc.doctor.doctor import run_checks

    results = list(run_checks(data=data, out=out))
    record = {
        "findings": [vars(result) for result in results],
        "num_notes": sum(result.state == "note" for result in results),
        "num_problems": sum(result.state == "problem" for result in results),
    }
    echo_result(record, _check_lines(results), as_json=as_json)


def _check_lines(results: "list[CheckResult]") -> Iterator[str]:
    width = max(len(result.name) for result in results)
    for result in results:
        yield from hanging_lines(f"{result.state:<7}  {result.name:<{width}}  ", result.value)
    for state in ("note", "problem"):
        for result in results:
            if result.state == state and result.advice:
                yield from hanging_lines(f"{state}: ", f"{result.name}: {result.advice}")
    num = sum(result.state == "problem" for result in results)
    yield f"{num} problem{'s' * (num > 1)} found" if num else "no problem found"
