from typing import Any

import pytest
from torch.utils.data import DataLoader


@pytest.fixture(autouse=True)
def _no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load in this process: a forked worker ends badly where coverage is measured."""

    def loader(*arguments: Any, **options: Any) -> DataLoader:
        return DataLoader(*arguments, **{**options, "num_workers": 0})

    monkeypatch.setattr("wsi_idc.bench.plain.DataLoader", loader)
