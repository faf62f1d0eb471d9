import itertools

import numpy as np
import pytest

from wsi_idc.bench import timing
from wsi_idc.runtime.device import select_device


def test_variants_run_in_turn_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch):
    clock, calls = itertools.count(), []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))

    def variant(name: str, num_patches: int):
        return lambda: (calls.append(name), num_patches)[1]

    variants = {"a": variant("a", 10), "b": variant("b", 4)}
    device_config = select_device("cpu")
    rates = timing.interleave(variants, num_rounds=2, device_config=device_config, label="x")
    assert calls == ["a", "b"] * 3
    assert {name: values.tolist() for name, values in rates.items()} == {
        "a": [10.0, 10.0],
        "b": [4.0, 4.0],
    }


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds():
    # The machine slows down in the middle: both variants at half speed have the same ratio.
    rates = {"command": np.array([20.0, 10.0, 10.0]), "slow": np.array([10.0, 5.0, 2.0])}
    assert timing.command_ratios(rates) == {"command / slow": 2.0}
    assert timing.medians(rates) == {"command": 10.0, "slow": 5.0}
