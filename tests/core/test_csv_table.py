import os
from pathlib import Path

import pandas as pd
import pytest

from wsi_idc.core.csv_table import csv_text, read_csv_table
from wsi_idc.core.errors import DataError

ROWS = [
    (2, {"patient": "NA", "b": "007"}),
    (4, {"patient": "1e5", "b": "None"}),
    (5, {"patient": "x"}),
]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_cells_stay_text_for_each_delimiter(tmp_path: Path, delimiter: str, start: str):
    path = tmp_path / "a.csv"
    text = f"{start}Patient , B\r\nNA,007\r\n,\r\n 1e5 ,None\r\nx\r\n".replace(",", delimiter)
    path.write_bytes(text.encode())
    assert read_csv_table(path, needs="patient") == (["patient", "b"], ROWS)


def test_a_quoted_cell_may_have_the_delimiter(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text('patient;b\n"a;b";"c,d"\n')
    assert read_csv_table(path, needs="b")[1] == [(2, {"patient": "a;b", "b": "c,d"})]


def test_a_pipe_a_folder_and_an_endless_file_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").touch()
    os.truncate(tmp_path / "long", 10**12)
    for name, reason in (
        ("pipe", "not a regular file"),
        ("", "Is a directory"),
        ("long", "larger than 100 MB"),
    ):
        with pytest.raises(DataError, match=rf"not a readable CSV \({reason}\); give one with a"):
            read_csv_table(tmp_path / name, needs="a")


def test_no_cell_is_a_formula_and_reading_gives_the_texts_again(tmp_path: Path):
    texts = ["=1+1", "+x", "-1", "@a", "'=b", "''+c", "'d", "e=", "", "7-8"]
    table = pd.DataFrame({"patient": texts, "x": -0.5, "n": -3, "mixed": [-1, "-1"] * 5})
    text = csv_text(table, float_format="%.2f")
    lines = text.splitlines()
    assert lines[0] == "patient,x,n,mixed"
    assert lines[1:3] == ["'=1+1,-0.50,-3,-1", "'+x,-0.50,-3,'-1"]
    assert lines[3:5] == ["'-1,-0.50,-3,-1", "'@a,-0.50,-3,'-1"]
    assert table["patient"].tolist() == texts  # unchanged
    (tmp_path / "a.csv").write_text(text)
    rows = read_csv_table(tmp_path / "a.csv", needs="patient")[1]
    assert [cells["patient"] for _, cells in rows] == texts
