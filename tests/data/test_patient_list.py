import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wsi_idc.core.errors import DataError
from wsi_idc.data.patient_list import read_patients


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_each_line_is_a_patient_without_comments(tmp_path: Path, encoding: str):
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
    ],
)
def test_unusable_lists_are_refused(tmp_path: Path, make: Callable[[Path], object], message: str):
    make(tmp_path / "ids.txt")
    with pytest.raises(DataError, match=rf"ids\.txt: {message}"):
        read_patients(tmp_path / "ids.txt")
