"""Measure commands on packs of many patients with few patches, as complete processes.

The script prints a table in Markdown: seconds of each command for each number of patients. If the
times grow in proportion to the patients, so do those of larger sets.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wsi_idc.bench.fixtures import drawn_pack

_COMMANDS = {
    "map --all": ["map", "--all", "--data", "idc.h5", "--checkpoint", "bundled"],
    "map --all again": ["map", "--all", "--data", "idc.h5", "--checkpoint", "bundled"],
    "report": ["report"],
    "explore": ["explore", "--data", "idc.h5"],
    "info": ["info", "maps"],
}


def measure(folder: Path, num_patients: int, *, per_patient: int) -> list[float]:
    """Return the seconds of each command for a pack of ``num_patients`` patients."""
    drawn_pack(folder / "idc.h5", num_patients * per_patient, a_patient=per_patient)
    seconds = []
    for arguments in _COMMANDS.values():
        started = time.perf_counter()
        command = [sys.executable, "-m", "wsi_idc", *arguments, "-q"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Print a row for each number of patients."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patients", default="250,500", help="Separated by commas.")
    parser.add_argument("--per-patient", type=int, default=4, help="Patches of a patient.")
    arguments = parser.parse_args()
    print(f"| patients | {' | '.join(_COMMANDS)} |")
    print(f"|---:|{'---:|' * len(_COMMANDS)}")
    for num_patients in map(int, arguments.patients.split(",")):
        with tempfile.TemporaryDirectory(prefix="wsi-idc-bench-") as name:
            seconds = measure(Path(name), num_patients, per_patient=arguments.per_patient)
        cells = " | ".join(f"{value:.1f} s" for value in seconds)
        print(f"| {num_patients:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
