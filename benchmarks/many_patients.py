"""Measure commands on packs of many patients with few patches, as complete processes.

The script prints a table in Markdown: CPU time and largest memory of each command for each number
of patients. If the times grow in proportion to the patients, so do those of larger sets.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from processes import run_process

_JOB = 'command = "map"\n\n[config]\nall = true\ndata = "idc.h5"\n'
# In a process of its own: the memory of a process is at least that of the script that starts it.
_DRAW = """
import sys
from pathlib import Path
from wsi_idc.bench.fixtures import drawn_pack
drawn_pack(Path("idc.h5"), int(sys.argv[1]), a_patient=int(sys.argv[2]))
"""
_MAP = ["map", "--all", "--data", "idc.h5", "--checkpoint", "bundled"]
# The second run of a command keeps maps and pages. map and report also write cohort.csv.
_COMMANDS = {
    "map --all": _MAP,
    "map --all again": _MAP,
    "report": ["report"],
    "report again": ["report"],
    "explore": ["explore", "--data", "idc.h5"],
    "status": ["status", "job.toml"],
    "info": ["info", "maps"],
}


def measure(folder: Path, num_patients: int, *, per_patient: int) -> list[str]:
    """Return the CPU time and memory of each command for a pack of ``num_patients`` patients."""
    sizes = (str(num_patients * per_patient), str(per_patient))
    run_process([sys.executable, "-c", _DRAW, *sizes], folder)
    (folder / "job.toml").write_text(_JOB)
    cells = []
    for name, arguments in _COMMANDS.items():
        usage = run_process([sys.executable, "-m", "wsi_idc", *arguments, "--quiet"], folder)
        cells.append(f"{usage.cpu_seconds:.1f} s, {usage.peak_mb:,.0f} MB")
        print(f"{num_patients} patients, {name}: {usage}", file=sys.stderr, flush=True)
    return cells


def main() -> None:
    """Print a row for each command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patients", default="500,1000,5000", help="Separated by commas.")
    parser.add_argument("--per-patient", type=int, default=4, help="Patches of a patient.")
    arguments = parser.parse_args()
    numbers = [int(number) for number in arguments.patients.split(",")]
    columns = []
    for number in numbers:
        with tempfile.TemporaryDirectory(prefix="wsi-idc-bench-") as name:
            columns.append(measure(Path(name), number, per_patient=arguments.per_patient))
    print(f"| command | {' | '.join(f'{number:,} patients' for number in numbers)} |")
    print(f"|---|{'---:|' * len(numbers)}")
    for command, *cells in zip(_COMMANDS, *columns, strict=True):
        print(f"| {command} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
