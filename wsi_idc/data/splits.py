"""Splits by patient: each patient of a run has one role (train, val or test).

A split is given as a text:

- ``canonical``: the published lists of Cruz-Roa 2014. Other patients have no role.
- ``canonical+unlisted``: the same lists. Other patients have the role train.
- ``ratio:70/15/15``: proportions of train, val and test.
- ``kfold:5/0``: fold 0 of 5 folds is test, the next fold is val, and the other folds are train.
- ``auto``: a split with ``canonical``, ``canonical+unlisted`` or ``DEFAULT_RATIO``. The choice
  depends on the patients of the pack.
- ``NAME.csv``: a CSV file with the columns patient and split.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_idc.core.constants import ROLES
from wsi_idc.core.csv_table import read_csv_table
from wsi_idc.core.errors import DataError
from wsi_idc.core.files import regular_file
from wsi_idc.core.text import count
from wsi_idc.data.pack import Pack

logger = logging.getLogger(__name__)
DEFAULT_RATIO = "ratio:70/15/15"
# Minimum fractions of the patients that the published lists contain: for "auto" to use the lists,
# and for "auto" to leave out all other patients.
_MIN_LISTED_FRACTION = 0.5
_MIN_LISTED_WITHOUT_OTHERS = 0.8
_MAX_LIST_BYTES = 10**7
_RATIO = re.compile(r"ratio:([0-9]{1,9})/([0-9]{1,9})/([0-9]{1,9})")
_KFOLD = re.compile(r"kfold:([0-9]{1,9})/([0-9]{1,9})")


@dataclass(frozen=True)
class Split:
    """Role of each patient of a run.

    Attributes:
        spec: Text of the split. Instead of "auto", this is the text of the chosen split.
        roles: Dict from patient id to role (train, val or test).
    """

    spec: str
    roles: Mapping[str, str]

    def patients(self, role: str) -> list[str]:
        """Return the sorted ids of the patients of a role."""
        return sorted(patient for patient, own_role in self.roles.items() if own_role == role)


def make_split(pack: Pack, spec: str = "auto", *, seed: int = 0) -> Split:
    """Split the patients of a pack.

    Args:
        pack: The pack.
        spec: Text of the split; see the docstring of the module.
        seed: Seed of the split; ``canonical`` and a CSV file do not depend on it.

    Raises:
        DataError: ``spec`` is not a split, or a role has no labelled patches or only one class. But
            test may have no patients in a CSV file, or in a ratio whose last number is 0.
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
        may_lack_test = spec.endswith(".csv") or (spec.startswith("ratio:") and spec.endswith("/0"))
        if role == "test" and may_lack_test and not split.patients(role):
            logger.warning(
                "split %s: there are no test patients; eval will use patients outside the split",
                spec,
            )
            continue
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
    """Count the labelled patches (column ``patches``) and the IDC patches (``idc``) of patients."""
    index = pack.index
    known = index[index["label"] >= 0]
    labels = known.groupby("patient")["label"]
    counts = pd.DataFrame({"patches": labels.size(), "idc": labels.sum()})
    counts = counts.reindex(range(len(pack.patients)), fill_value=0)
    counts.index = pd.Index(pack.patients, name="patient")
    return counts


def split_table(split: Split, pack: Pack) -> pd.DataFrame:
    """Count patients and labelled patches of each role, and compute the fraction of IDC patches.

    The row "left out" counts the patients without a role.
    """
    table = patient_table(pack)
    role = pd.Series(dict(split.roles)).reindex(table.index).fillna("left out")
    grouped = table.groupby(role)
    result = grouped.sum().assign(patients=grouped.size())
    result["idc_fraction"] = result["idc"] / result["patches"]
    order = [name for name in (*ROLES, "left out") if name in result.index]
    return result.loc[order][["patients", "patches", "idc_fraction"]]


def canonical_roles() -> dict[str, str]:
    """Return a dict from patient id to role, from the published lists of Cruz-Roa 2014.

    The lists have 84 patients for train, 29 for val and 49 for test; see ``canonical_split.md``.
    """
    source = resources.files("wsi_idc.data") / "canonical_split.csv"
    lines = source.read_text(encoding="utf-8").split()[1:]
    return dict(line.split(",") for line in lines)


def _default(table: pd.DataFrame) -> str:
    """Choose the split that replaces "auto".

    If the published lists have most patients of the pack, this is the canonical split, with or
    without unlisted patients. Otherwise, this is ``DEFAULT_RATIO``.
    """
    roles = canonical_roles()
    listed = [roles[patient] for patient in table.index if patient in roles]
    fraction, spec = len(listed) / len(table), DEFAULT_RATIO
    if fraction >= _MIN_LISTED_FRACTION and set(listed) == set(ROLES):
        has_few_others = fraction >= _MIN_LISTED_WITHOUT_OTHERS
        spec = "canonical" if has_few_others else "canonical+unlisted"
    reason = f"{len(listed)} of {count(len(table), 'patient')} are in the published lists"
    logger.info("split auto: %s, because %s", spec, reason)
    return spec


def _by_fraction(table: pd.DataFrame, *, seed: int) -> list[str]:
    """Order patients by their fraction of IDC patches; the order of equal fractions is random."""
    shuffled = table.sample(frac=1, random_state=seed)
    fraction = shuffled["idc"] / shuffled["patches"].clip(lower=1)
    return list(fraction.sort_values(kind="stable").index)


def _ratio(table: pd.DataFrame, parts: list[int], *, seed: int) -> dict[str, str]:
    """Assign roles in the proportions ``parts``, so that the roles have similar IDC fractions."""
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
    """Divide the patients into folds; ``fold`` is test, the next fold val, and the rest train."""
    if not (3 <= num_folds <= len(table) and fold < num_folds):
        raise DataError(
            f"kfold:{num_folds}/{fold}: the number of folds must be 3 to {len(table)} (the number "
            "of patients), and folds are counted from 0"
        )
    patients = _by_fraction(table, seed=seed)
    rng = np.random.default_rng(seed)
    folds = [own for _ in patients[::num_folds] for own in rng.permutation(num_folds)]
    other_roles = {fold: "test", (fold + 1) % num_folds: "val"}
    pairs = zip(patients, folds, strict=False)
    return {patient: other_roles.get(own_fold, "train") for patient, own_fold in pairs}


def _from_csv(path: Path, table: pd.DataFrame) -> dict[str, str]:
    roles: dict[str, str] = {}
    for line, cells in read_csv_table(path, needs="patient,split")[1]:
        patient, role = cells.get("patient", ""), cells.get("split", "").lower()
        if role not in ROLES:
            raise DataError(f"{path}, line {line}: split {role!r} is not one of train, val, test")
        if roles.setdefault(patient, role) != role:
            raise DataError(f"{path}: patient {patient!r} has more than one split; keep one row")
    if unknown := sorted(set(roles).difference(table.index)):
        raise DataError(
            f"{path}: {count(len(unknown), 'patient is', 'patients are')} not in the data, "
            f"such as {unknown[0]!r}; correct or remove these ids"
        )
    return roles


def read_patients(path: Path) -> list[str]:
    """Read the patient ids in a text file, one per line; text after # is a comment.

    Raises:
        DataError: The file cannot be read or lists no patient.
    """
    remedy = "give a text file with an id on each line"
    try:
        lines = regular_file(path, _MAX_LIST_BYTES).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "not a text file")
        raise DataError(f"{path}: {reason}; {remedy}") from None
    # A # inside a word is part of a patient id.
    ids = [patient for line in lines if (patient := re.split(r"(?:^|\s)#", line)[0].strip())]
    if not ids:
        raise DataError(f"{path}: lists no patient; give an id on each line")
    return ids
