import threading
from collections.abc import Iterator

import numpy as np
import pytest

from wsi_idc.runtime.prefetch import prefetch, rebatch


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num", [0, 1, 2, 5])
def test_items_come_in_order(num: int, num_threads: int):
    items = prefetch(lambda key: key * 10, range(num), num=num_threads)
    assert list(items) == [key * 10 for key in range(num)]


def test_only_the_next_item_is_read_while_one_is_used():
    keys = []
    second = threading.Event()

    def read(key: int) -> int:
        keys.append(key)
        if key == 1:
            second.set()
        return key

    items = prefetch(read, range(5))
    assert next(items) == 0
    assert second.wait(10)
    assert keys == [0, 1]
    items.close()


def test_more_items_than_threads_wait_to_be_read():
    taken = []

    def keys() -> Iterator[int]:
        for key in range(10):
            taken.append(key)
            yield key

    items = prefetch(lambda key: key, keys(), num=2, num_ahead=4)
    assert next(items) == 0
    assert taken == [0, 1, 2, 3, 4]
    assert list(items) == list(range(1, 10))


def test_error_of_a_read_is_raised_in_its_turn():
    items = prefetch(lambda key: 1 // key, (1, 0))
    assert next(items) == 1
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_streams_of_arrays_are_cut_again():
    parts = [np.arange(at, at + num) for at, num in ((0, 3), (3, 0), (3, 1), (4, 7))]
    found = [array.tolist() for array in rebatch(parts, batch_size=4)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert list(rebatch([], batch_size=4)) == []
