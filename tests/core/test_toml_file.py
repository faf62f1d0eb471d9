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
    assert toml_file.num_tasks(content) == 3
    assert toml_file.table(content, "flags") == {"all": True}
    assert toml_file.table(content, "missing") == {}
    toml_file.check_keys("job", content, ["command", "tasks", "flags"])
    assert toml_file.typed("rate", 1, float) == 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory; give a job"),
        (b"a =", r"not a readable TOML file \(Invalid value"),
        (b"a = '\xff'", "not a readable TOML file"),
        (b"a = " + b"[" * 100_000, "not a readable TOML file"),
        (b"#" * 1_000_001, "too large for a job file"),
        ("pipe", "not a regular file; give a job file"),
    ],
    ids=range(6),
)
def test_unreadable_file_is_refused(tmp_path: Path, content: bytes | str | None, message: str):
    path = tmp_path / "job.toml"
    if content == "pipe":
        os.mkfifo(path)
    elif content:
        path.write_bytes(content)
    with pytest.raises(JobError, match=message):
        toml_file.load_toml(path)


COMMANDS = ["map", "train"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (lambda value=value: toml_file.command_and_name(value, Path("a"), COMMANDS), message)
            for value, message in (
                ({}, "command must be one of map, train, not None"),
                ({"command": "trian"}, "not 'trian'; did you mean train"),
                ({"command": "map", "name": "../up"}, "name '../up' is not a plain name"),
                ({"command": "map", "name": 1}, "name must be a text, not 1"),
            )
        ),
        (lambda: toml_file.num_tasks({"tasks": 0}), "tasks is 0; it must be from 1 to 10000"),
        (lambda: toml_file.num_tasks({"tasks": True}), "tasks must be an integer, not True"),
        (lambda: toml_file.table({"flags": 1}, "flags"), r"flags must be a table, \[flags\]"),
        (
            lambda: toml_file.check_keys("a job", ["epoch"], ["epochs"]),
            "a job has an unknown 'epoch'; did you mean epochs",
        ),
        (
            lambda: toml_file.check_keys("a job", ["zzz"], ["seed", "epochs"]),
            "a job has an unknown 'zzz'; it may have seed, epochs",
        ),
        (lambda: toml_file.typed("rate", "1", float), "rate must be a number, not '1'"),
        (lambda: toml_file.typed("seed", 2**63, int), "seed is too large a number"),
        (lambda: toml_file.typed("name", "a\nb", str), "must be one line of printable text"),
    ],
)
def test_invalid_content_is_refused(call, message: str):
    with pytest.raises(JobError, match=message):
        call()
