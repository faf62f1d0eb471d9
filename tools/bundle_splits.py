"""Write the splits of the bundled model: four folds of the patients, and all patients.

    python tools/bundle_splits.py data/idc.h5

A fold's test patients are those of the split kfold:4/FOLD. A few other patients are val patients:
they show the progress of a training. All other patients are train patients. The split "all" has no
test patients. The files are jobs/bundled/fold0.csv to fold3.csv, and jobs/bundled/all.csv.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import make_split

FOLDER = Path(__file__).resolve().parents[1] / "jobs/bundled"
NUM_FOLDS = 4
_NUM_VAL = 12  # patients


def main(data: Path) -> None:
    """Write the CSV files."""
    pack = Pack(data)
    FOLDER.mkdir(exist_ok=True)
    for fold in range(NUM_FOLDS):
        test = make_split(pack, f"kfold:{NUM_FOLDS}/{fold}").patients("test")
        _write(FOLDER / f"fold{fold}.csv", pack.patients, test)
    _write(FOLDER / "all.csv", pack.patients, [])


def _write(path: Path, patients: list[str], test: list[str]) -> None:
    others = sorted(set(patients) - set(test))
    val = np.random.default_rng(0).permutation(others)[:_NUM_VAL]
    roles = dict.fromkeys(others, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    table = pd.DataFrame(sorted(roles.items()), columns=["patient", "split"])
    table.to_csv(path, index=False, lineterminator="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    main(parser.parse_args().data)
