import resource
from pathlib import Path

import pytest

from wsi_idc.core.errors import DiskFullError
from wsi_idc.data.feature_cache import open_feature_cache


@pytest.mark.parametrize("max_bytes", [0, 5_000, 5_130_000])
def test_a_full_disk_is_one_error_without_messages_of_hdf5(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], max_bytes: int
):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, limit[1]))
    try:
        cache = open_feature_cache(tmp_path, {"a": 1}, num_rows=20_000, lengths={"features": 64})
        with pytest.raises(DiskFullError, match="free some space and run again"), cache:
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert capfd.readouterr() == ("", "")
