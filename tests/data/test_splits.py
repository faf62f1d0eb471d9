import os
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_idc.core.errors import DataError
from wsi_idc.data.pack import Pack, PackInfo, write_pack
from wsi_idc.data.splits import (
    ROLES,
    canonical_roles,
    make_split,
    patient_table,
    read_patients,
    split_table,
)


def write(folder: Path, patients: dict[str, tuple[int, int]]) -> Pack:
    """Write a real pack of 1 px patches; patient to counts of class 0 and class 1."""
    rows = [
        (patient, x, int(x >= zeros))
        for patient, (zeros, ones) in sorted(patients.items())
        for x in range(zeros + ones)
    ]
    table = pd.DataFrame(rows, columns=["patient", "x", "label"])
    table = table.assign(y=0, height=1, width=1, path="")
    info = PackInfo((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1, 4.0, "assumed", "00" * 32)
    pixels = np.zeros((len(table), 1, 1, 3), np.uint8)
    write_pack(folder / "a.h5", table, [pixels], info=info, provenance="{}")
    return Pack(folder / "a.h5")


def cohort(size: int, *, seed: int = 0) -> dict[str, tuple[int, int]]:
    rng = np.random.default_rng(seed)
    return {f"p{i:03}": tuple(map(int, rng.integers(1, 40, 2))) for i in range(size)}


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    """Return a pack of 40 patients, both classes in each."""
    return write(tmp_path_factory.mktemp("pack"), cohort(40))


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> list[Pack]:
    """Return packs of several numbers of patients."""
    folder = tmp_path_factory.mktemp("packs")
    return [write(folder / str(n), cohort(n, seed=n)) for n in (10, 13, 29, 60)]


WHICH = st.integers(0, 3)
SEEDS = st.integers(0, 2**32 - 1)


def assert_no_leak(split, patients: list[str]) -> None:
    sides = [set(split.patients(role)) for role in ROLES]
    assert sum(map(len, sides)) == len(set().union(*sides)) == len(split.roles)
    assert set().union(*sides) <= set(patients)


@settings(deadline=None)
@given(WHICH, SEEDS)
def test_ratio_gives_every_patient_one_role_in_proportion(packs, which, seed):
    pack = packs[which]
    split = make_split(pack, "ratio:70/15/15", seed=seed)
    assert_no_leak(split, pack.patients)
    assert set(split.roles) == set(pack.patients)
    for role, share in zip(ROLES, (0.7, 0.15, 0.15), strict=True):
        assert abs(len(split.patients(role)) - share * len(pack.patients)) <= 1
    assert make_split(pack, "ratio:70/15/15", seed=seed) == split


@settings(max_examples=40, deadline=None)
@given(WHICH, st.integers(3, 10), SEEDS)
def test_kfold_tests_and_validates_every_patient_once(packs, which, num_folds, seed):
    pack = packs[which]
    splits = [make_split(pack, f"kfold:{num_folds}/{k}", seed=seed) for k in range(num_folds)]
    for split in splits:
        assert_no_leak(split, pack.patients)
        assert set(split.roles) == set(pack.patients)
    for role in ("val", "test"):
        seen = Counter(patient for split in splits for patient in split.patients(role))
        assert seen == dict.fromkeys(pack.patients, 1)
    sizes = [len(split.patients("test")) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    assert make_split(pack, f"kfold:{num_folds}/0", seed=seed) == splits[0]


SPECS = ["auto", "canonical", "canonical+unlisted", "ratio:70/15/15", "ratio:1/1/1", "kfold:3/1"]
COUNTS = st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*canonical_roles(), *"abcdefgh"]), COUNTS, min_size=3),
    st.sampled_from(SPECS),
    SEEDS,
)
def test_no_patient_has_two_roles(tmp_path_factory, patients, spec, seed):
    pack = write(tmp_path_factory.mktemp("pack"), patients)
    try:
        split = make_split(pack, spec, seed=seed)
    except DataError as error:
        assert re.search("is left for|has one class only", str(error))
        return
    assert_no_leak(split, pack.patients)
    assert make_split(pack, spec, seed=seed) == split
    rows = {role: np.flatnonzero(np.isin(pack.patient_of, split.patients(role))) for role in ROLES}
    assert not set(rows["train"]) & (set(rows["val"]) | set(rows["test"]))
    for own in rows.values():
        assert set(pack.index["label"].iloc[own]) == {0, 1}


@pytest.mark.parametrize("spec", ["ratio:70/15/15", "ratio:2/1/1", "kfold:5/0"])
def test_each_seed_is_another_split(pack, spec):
    splits = {tuple(sorted(make_split(pack, spec, seed=seed).roles.items())) for seed in range(10)}
    assert len(splits) == 10


@pytest.mark.parametrize("spec", ["ratio:70/15/15", "kfold:5/0"])
def test_roles_have_similar_idc_fractions(pack, spec):
    table = patient_table(pack)
    fraction = table["idc"] / table["patches"]
    for seed in range(5):
        split = make_split(pack, spec, seed=seed)
        means = [fraction[split.patients(role)].mean() for role in ROLES]
        assert max(means) - min(means) < 0.1


def test_patient_table_counts_known_labels(tmp_path):
    pack = write(tmp_path, {"a": (3, 1), "b": (1, 2)})
    pack.index.loc[0, "label"] = -1
    table = patient_table(pack)
    assert table.index.tolist() == ["a", "b"]
    assert table["patches"].tolist() == [3, 3]
    assert table["idc"].tolist() == [1, 2]
    pack.index.loc[pack.index["patient"] == 1, "label"] = -1
    assert patient_table(pack).loc["b"].tolist() == [0, 0]


def test_split_table(tmp_path):
    pack = write(tmp_path, {"a": (3, 1), "b": (1, 1), "c": (1, 3), "d": (1, 1), "e": (5, 5)})
    csv = tmp_path / "s.csv"
    csv.write_text("patient,split\na,train\nb,train\nc,val\nd,test\n")
    table = split_table(make_split(pack, str(csv)), pack)
    assert table.index.tolist() == ["train", "val", "test", "left out"]
    assert table["patients"].tolist() == [2, 1, 1, 1]
    assert table["patches"].tolist() == [6, 4, 2, 10]
    assert table["idc_fraction"].tolist() == [2 / 6, 0.75, 0.5, 0.5]


def test_the_published_lists_are_shipped_with_a_note_of_their_source():
    roles = canonical_roles()
    assert Counter(roles.values()) == {"train": 84, "val": 29, "test": 49}
    assert (roles["9024"], roles["8915"]) == ("train", "train")  # not in the Kaggle release
    folder = resources.files("wsi_idc.data")
    rows = (folder / "canonical_split.csv").read_text(encoding="utf-8").splitlines()
    patients = [row.split(",")[0] for row in rows[1:]]
    assert rows[0] == "patient,split"
    assert len(patients) == len(set(patients)) == 162
    note = (folder / "canonical_split.md").read_text(encoding="utf-8")
    assert "Cruz-Roa" in note
    assert "84 train, 29 val, 49 test" in note


def test_canonical_and_unlisted(tmp_path):
    lists = canonical_roles()
    pack = write(tmp_path, dict.fromkeys([*lists, "unlisted"], (1, 1)))
    assert make_split(pack, "canonical").roles == lists
    assert make_split(pack, "canonical+unlisted").roles == lists | {"unlisted": "train"}


def test_auto_chooses_the_published_lists_or_a_ratio(tmp_path, pack, caplog):
    caplog.set_level("INFO", logger="wsi_idc")
    assert make_split(pack).spec == "ratio:70/15/15"
    lists = canonical_roles()
    some = [patient for role in ROLES for patient in lists if lists[patient] == role][::8]
    few = len(some) // 4
    for others, spec in [
        *((few, "canonical"), (few + 1, "canonical+unlisted")),
        *((len(some), "canonical+unlisted"), (len(some) + 1, "ratio:70/15/15")),
    ]:
        ids = some + [f"p{i}" for i in range(others)]
        caplog.clear()
        assert make_split(write(tmp_path, dict.fromkeys(ids, (1, 1)))).spec == spec
        reason = f"{len(some)} of {len(ids)} patients are in the published lists"
        assert caplog.messages == [f"split auto: {spec}, because {reason}"]
    one_role = dict.fromkeys([p for p in lists if lists[p] == "train"], (1, 1))
    assert make_split(write(tmp_path, one_role)).spec == "ratio:70/15/15"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ratio:70/15", r"unknown split 'ratio:70/15'; use canonical, canonical\+unlisted, ratio"),
        ("kfold:5", "unknown split"),
        ("", "unknown split"),
        ("ratio:70/15/15\n", "unknown split"),
        ("ratio:0/0/0", "assigns no patient to a role; use ratio:70/15/15"),
        ("ratio:1/0/0", "split ratio:1/0/0: no patient with labels is left for val"),
        ("kfold:2/0", "must be 3 to 40"),
        ("kfold:41/0", "must be 3 to 40"),
        ("kfold:5/5", "folds are counted from 0"),
        ("canonical", "split canonical: no patient with labels is left for train"),
    ],
)
def test_texts_that_are_not_a_split(pack, spec, message):
    with pytest.raises(DataError, match=message) as caught:
        make_split(pack, spec)
    assert len(str(caught.value).splitlines()) == 1


GOOD = "patient,split\np000,train\np001,val\np002,test\n"


def test_csv(pack, tmp_path):
    path = tmp_path / "split.csv"
    for text in (
        *(GOOD, "\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), GOOD + "p000,train\n"),
        "n,split,patient\n1,train,p000\n2,val,p001\n3,test,p002\n",
        *(
            GOOD.replace(",", ";"),
            GOOD.replace(",", "\t"),
            GOOD.replace(",", " , ").title().replace("P0", "p0"),
        ),
    ):
        path.write_bytes(text.encode())
        split = make_split(pack, str(path))
        assert split.roles == {"p000": "train", "p001": "val", "p002": "test"}


def test_csv_with_ids_that_look_like_numbers_or_missing_values(tmp_path):
    roles = {"NA": "train", "None": "train", "007": "val", "1e5": "test", "nan": "test"}
    path = tmp_path / "split.csv"
    path.write_text("patient,split\n" + "".join(f"{p},{role}\n" for p, role in roles.items()))
    assert make_split(write(tmp_path, dict.fromkeys(roles, (1, 1))), str(path)).roles == roles


def test_a_split_without_test_patients_is_allowed_and_logged(pack, tmp_path, caplog):
    path = tmp_path / "split.csv"
    path.write_text("patient,split\np000,train\np001,val\n")
    split = make_split(pack, str(path))
    assert split.roles == {"p000": "train", "p001": "val"}
    assert split_table(split, pack)["patients"].to_dict() == {"train": 1, "val": 1, "left out": 38}
    assert make_split(pack, "ratio:80/20/0").patients("test") == []
    line = "there are no test patients; eval will use patients outside the split"
    assert caplog.messages == [f"split {path}: {line}", f"split ratio:80/20/0: {line}"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no such file; give a CSV with patient,split"),
        ("folder", r"not a readable CSV \(Is a directory\)"),
        (b"", "needs the columns patient,split; has ''"),
        (b"\x89HDF\r\n\x1a\n\xff\xfe", r"not a readable CSV \(not UTF-8\); save it as CSV UTF-8"),
        (b"patient;role\np000;train\n", "needs the columns patient,split; has 'patient,role'"),
        (b'patient,"a\nb"\n1,2\n', "needs the columns"),
        (b"patient,split\np000,train\np001,dev\n", "line 3: split 'dev' is not one of train, val"),
        (b"patient,split\np000,\n", "split '' is not one of"),
        (GOOD.encode() + b"p002,train\n", "patient 'p002' has more than one split; keep one row"),
        (GOOD.encode() + b"x\xc3\xa9,train\n", "1 patient is not in the data, such as 'xé'"),
        (b"patient,split\n", "is left for train"),
        (b"patient,split\np000,train\np001,test\n", "is left for val; give more"),
        (b"patient,split\np000,train,1\n", "line 2: 3 cells, but 2 column names; put quotation"),
        (b'patient,split\n"p000,train\n', "line 2: split '' is not one of"),
        (b"patient,split,split\np000,train,val\n", "has the column 'split' twice"),
        (b"patient,split\np000,train\np001\n", "split '' is not one of"),
    ],
)
def test_csv_that_cannot_be_used(pack, tmp_path, data, message):
    path = tmp_path / "split.csv"
    if data is not None:
        path.mkdir() if data == "folder" else path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        make_split(pack, str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_role_of_one_class_is_refused(tmp_path):
    (tmp_path / "s.csv").write_text(GOOD)
    for counts in ((4, 0), (0, 4)):
        pack = write(tmp_path, {"p000": (2, 2), "p001": (2, 2), "p002": counts})
        with pytest.raises(DataError, match="test has one class only; use another --seed or split"):
            make_split(pack, str(tmp_path / "s.csv"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_each_line_is_a_patient_without_comments(tmp_path, encoding):
    path = tmp_path / "ids.txt"
    text = "S0001\n# mine\n\n  S0003  \n  # no one\nS0004 # the last\nS#5\n"
    path.write_text(text, encoding=encoding)
    assert read_patients(path) == ["S0001", "S0003", "S0004", "S#5"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("\n"), "lists no patient"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not a text file"),
        (lambda path: None, "No such file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.touch() or os.truncate(path, 10**12), "larger than 10 MB"),
    ],
)
def test_unusable_lists_are_refused(tmp_path, make, message):
    make(tmp_path / "ids.txt")
    with pytest.raises(DataError, match=rf"ids\.txt: {message}"):
        read_patients(tmp_path / "ids.txt")
