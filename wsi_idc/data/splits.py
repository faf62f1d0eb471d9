"""Splits by patient: each patient of a run has one role (train, val or test).

A split is given as a text: ``auto``, ``canonical``, ``canonical+unlisted``,
``ratio:70/15/15``, ``kfold:5/0`` or a CSV file with the columns patient and split.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_idc.core.constants import ROLES
from wsi_idc.core.errors import DataError, first_line
from wsi_idc.data.pack import Pack

DEFAULT_RATIO = "ratio:70/15/15"
# The canonical split is used if it lists at least this fraction of the patients of a data set.
_MIN_LISTED_FRACTION = 0.5
_RATIO = re.compile(r"ratio:([0-9]{1,9})/([0-9]{1,9})/([0-9]{1,9})")
_KFOLD = re.compile(r"kfold:([0-9]{1,9})/([0-9]{1,9})")


@dataclass(frozen=True)
class Split:
    """Role of each patient of a run.

    Attributes:
        spec: Text from which the split was made; for "auto", the text that "auto" chose.
        roles: Role (train, val or test) of each patient id.
    """

    spec: str
    roles: Mapping[str, str]

    def patients(self, role: str) -> list[str]:
        """Return the sorted ids of the patients of a role."""
        return sorted(patient for patient, own_role in self.roles.items() if own_role == role)


def make_split(pack: Pack, spec: str = "auto", *, seed: int = 0) -> Split:
    """Split the patients of a pack.

    Raises:
        DataError: ``spec`` is not a split, or a role would have no patient or only one class.
    """
    table = patient_table(pack)
    if spec == "auto":
        spec = _default(table)
    if spec in ("canonical", "canonical+unlisted"):
        lists, with_unlisted = canonical_roles(), spec.endswith("unlisted")
        roles = {p: lists.get(p, "train") for p in table.index if p in lists or with_unlisted}
    elif match := _RATIO.fullmatch(spec):
        roles = _ratio(table, [int(part) for part in match.groups()], seed=seed)
    elif match := _KFOLD.fullmatch(spec):
        roles = _kfold(table, num_folds=int(match[1]), fold=int(match[2]), seed=seed)
    elif spec.endswith(".csv"):
        roles = _from_csv(Path(spec), table)
    else:
        raise DataError(
            f"unknown split {spec!r}; use canonical, canonical+unlisted, {DEFAULT_RATIO}, "
            "kfold:5/0 or a CSV file with the columns patient,split"
        )
    split = Split(spec, roles)
    for role in ROLES:
        counts = table.loc[split.patients(role)].sum()
        if counts["patches"] == 0:
            raise DataError(
                f"split {spec}: no patient with labels is left for {role}; give more patients, or "
                "a CSV with patient,split"
            )
        if counts["idc"] in (0, counts["patches"]):
            raise DataError(
                f"split {spec}: {role} has one class only; use another --seed or split, or a CSV "
                "with patient,split"
            )
    return split


def patient_table(pack: Pack) -> pd.DataFrame:
    """Count the labeled patches (``patches``) and the IDC patches (``idc``) of each patient."""
    index = pack.index
    known = index[index["label"] >= 0]
    labels = known.groupby("patient")["label"]
    counts = pd.DataFrame({"patches": labels.size(), "idc": labels.sum()})
    counts = counts.reindex(range(len(pack.patients)), fill_value=0)
    counts.index = pd.Index(pack.patients, name="patient")
    return counts


def split_table(split: Split, pack: Pack) -> pd.DataFrame:
    """Return patients, patches and IDC fraction of each role; other patients are "left out"."""
    table = patient_table(pack)
    role = pd.Series(dict(split.roles)).reindex(table.index).fillna("left out")
    grouped = table.groupby(role)
    result = grouped.sum().assign(patients=grouped.size())
    result["idc_fraction"] = result["idc"] / result["patches"]
    order = [name for name in (*ROLES, "left out") if name in result.index]
    return result.loc[order][["patients", "patches", "idc_fraction"]]


def canonical_roles() -> dict[str, str]:
    """Return the roles of Cruz-Roa 2014 (canonical_split.md): 84 train, 29 val, 49 test."""
    source = resources.files("wsi_idc.data") / "canonical_split.csv"
    lines = source.read_text(encoding="utf-8").split()[1:]
    return dict(line.split(",") for line in lines)


def _default(table: pd.DataFrame) -> str:
    """Choose "canonical" if it lists at least half of the patients and every role, else a ratio."""
    roles = canonical_roles()
    listed = [roles[patient] for patient in table.index if patient in roles]
    is_canonical = len(listed) >= _MIN_LISTED_FRACTION * len(table) and set(listed) == set(ROLES)
    return "canonical" if is_canonical else DEFAULT_RATIO


def _by_fraction(table: pd.DataFrame, *, seed: int) -> list[str]:
    """Order patients by IDC fraction; order patients of equal IDC fraction at random."""
    shuffled = table.sample(frac=1, random_state=seed)
    fraction = shuffled["idc"] / shuffled["patches"].clip(lower=1)
    return list(fraction.sort_values(kind="stable").index)


def _ratio(table: pd.DataFrame, parts: list[int], *, seed: int) -> dict[str, str]:
    """Assign roles in the proportions ``parts``, so that all roles have similar IDC fractions."""
    if sum(parts) == 0:
        raise DataError(f"ratio:0/0/0 assigns no patient to a role; use {DEFAULT_RATIO}")
    patients = _by_fraction(table, seed=seed)
    rng = np.random.default_rng(seed)
    fractions = np.array(parts) / sum(parts)
    # The next patient gets the role that lacks the most patients for its fraction. Therefore each
    # block has the proportions ``parts``. The seed orders the roles within a block.
    tie_breaker = rng.permutation(3) * 1e-9
    counts = np.zeros(3)
    roles = []
    for num_assigned in range(1, len(patients) + 1):
        role = int(np.argmax(fractions * num_assigned - counts + tie_breaker))
        counts[role] += 1
        roles.append(ROLES[role])
    block = round(1 / fractions[fractions > 0].min())
    for start in range(0, len(roles), block):
        roles[start : start + block] = rng.permutation(roles[start : start + block]).tolist()
    return dict(zip(patients, roles, strict=True))


def _kfold(table: pd.DataFrame, *, num_folds: int, fold: int, seed: int) -> dict[str, str]:
    """Use fold ``fold`` for test, the next fold for val, and the other folds for train."""
    if not (3 <= num_folds <= len(table) and fold < num_folds):
        raise DataError(
            f"kfold:{num_folds}/{fold}: the number of folds must be 3 to {len(table)} (the number "
            "of patients), and folds count from 0"
        )
    patients = _by_fraction(table, seed=seed)
    rng = np.random.default_rng(seed)
    folds = [own for _ in patients[::num_folds] for own in rng.permutation(num_folds)]
    other_roles = {fold: "test", (fold + 1) % num_folds: "val"}
    pairs = zip(patients, folds, strict=False)
    return {patient: other_roles.get(own_fold, "train") for patient, own_fold in pairs}


def _from_csv(path: Path, table: pd.DataFrame) -> dict[str, str]:
    try:
        with warnings.catch_warnings():
            # pandas would drop or shift the cells of a line that is longer than the header.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            rows = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False).fillna("")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a CSV with patient,split") from None
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        raise DataError(f"{path}: not a readable CSV ({first_line(error)})") from None
    if not {"patient", "split"} <= set(rows.columns):
        columns = ",".join(rows.columns)
        raise DataError(f"{path}: needs the columns patient,split; has {columns!r}")
    if wrong := sorted(set(rows["split"]) - set(ROLES)):
        raise DataError(f"{path}: split {wrong[0]!r} is not one of train, val, test")
    patients = rows.drop_duplicates(["patient", "split"])["patient"]
    if patients.duplicated().any():
        patient = patients[patients.duplicated(keep=False)].iloc[0]
        raise DataError(f"{path}: patient {patient!r} has more than one split; keep one row")
    if unknown := sorted(set(patients) - set(table.index)):
        raise DataError(
            f"{path}: {len(unknown)} patients are not in the data, such as {unknown[0]!r}; "
            "correct or remove them"
        )
    return dict(zip(rows["patient"], rows["split"], strict=True))


def read_patients(path: Path) -> list[str]:
    """Read the patient ids in a text file, one per line; text after # is a comment.

    Raises:
        DataError: The file cannot be read or lists no patient.
    """
    remedy = "give a text file with an id on each line"
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise DataError(f"{path}: not a regular file; {remedy}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "not a text file")
        raise DataError(f"{path}: {reason}; {remedy}") from None
    # A # inside a word is part of a patient id.
    ids = [patient for line in lines if (patient := re.split(r"(?:^|\s)#", line)[0].strip())]
    if not ids:
        raise DataError(f"{path}: lists no patient; give an id on each line")
    return ids
