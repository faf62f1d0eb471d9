import os
from pathlib import Path

import pytest

from wsi_idc.core import toml_file
from wsi_idc.core.errors import JobError


def test_job_file_is_read(tmp_path: Path):
    path = tmp_path / "my-job.toml"
    path.write_text('command = "map"\ntasks = 3\n[flags]\nall = true\n', encoding="utf-8")
    content = toml_file.load_toml(path)
    assert toml_file.command_and_name(content, path, ["map", "train"]) == ("map", "my-job")
    assert toml_file.typed("tasks", content["tasks"], int) == 3
    assert toml_file.table(content, "flags", ["all"]) == {"all": True}
    assert toml_file.table(content, "missing", []) == {}
    toml_file.check_keys("job", content, ["command", "tasks", "flags"])
    assert toml_file.typed("rate", 1, float) == 1.0
    # The tests of jobs and searches have the other errors.
    with pytest.raises(JobError, match="a job has an unknown key 'zzz'; permitted: command, tasks"):
        toml_file.check_keys("a job", ["zzz"], content)


def test_byte_order_mark_is_skipped(tmp_path: Path):
    (tmp_path / "job.toml").write_text('\ufeffcommand = "map"\n', encoding="utf-8")
    assert toml_file.load_toml(tmp_path / "job.toml") == {"command": "map"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory; give a job"),
        (b"a =", r"not a readable TOML file \(Invalid value"),
        (b"a = '\xff'", "not a readable TOML file"),
        (b"a = " + b"[" * 100_000, "not a readable TOML file"),
        (b"#" * 1_000_001, "larger than 1 MB; give a job file"),
        (
            b".".join([b"a"] * 20_000) + b"=1",
            r"not a readable TOML file \(a line has more than 500",
        ),
        ("pipe", "not a regular file; give a job file"),
    ],
    ids=range(7),
)
def test_unreadable_file_is_refused(tmp_path: Path, content: bytes | str | None, message: str):
    path = tmp_path / "job.toml"
    if content == "pipe":
        os.mkfifo(path)
    elif content:
        path.write_bytes(content)
    with pytest.raises(JobError, match=message):
        toml_file.load_toml(path)
