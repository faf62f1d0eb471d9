import json
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata

import pytest

from wsi_idc import __version__
from wsi_idc.core.provenance import provenance


def test_record_describes_this_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/wsi-idc", "map", "--all"])
    record = provenance(data="idc.h5")
    assert json.loads(json.dumps(record)) == record
    assert record["command"] == ["wsi-idc", "map", "--all"]
    assert (record["version"], record["python"]) == (__version__, platform.python_version())
    assert record["libraries"]["numpy"] == metadata.version("numpy")
    assert record["data"] == "idc.h5"
    age = datetime.now(UTC) - datetime.fromisoformat(record["created"])
    assert 0 <= age.total_seconds() < 60
    assert record["git_commit"] is None or len(record["git_commit"]) == 40
