import itertools

import pytest

from wsi_idc.bench import timing as rounds
from wsi_idc.bench.timing import Rates, interleave
from wsi_idc.runtime.device import select_device


def test_ways_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch):
    now, done = itertools.count(), []
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: float(next(now)))

    def way(name: str, num: int):
        def run() -> int:
            done.append(name)
            return num

        return run

    ways = {"a": way("a", 10), "b": way("b", 4)}
    rates = interleave(ways, num_rounds=2, compute=select_device("cpu"))
    assert done == ["a", "b"] * 3
    assert rates.rounds == {"a": [10.0, 10.0], "b": [4.0, 4.0]}
    assert rates.milliseconds() == {"a": 100.0, "b": 250.0}


def test_a_ratio_is_the_median_of_the_rounds_not_of_the_rates():
    # A machine that slows down in the middle: each way at half its speed, the ratio the same.
    rates = Rates({"fast": [20.0, 10.0, 10.0], "slow": [10.0, 5.0, 2.0]})
    assert rates.ratio("fast", "slow") == 2.0
    assert rates.median("slow") == 5.0
