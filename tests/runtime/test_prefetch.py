import threading

import pytest

from wsi_idc.runtime.prefetch import prefetch_one


@pytest.mark.parametrize("num", [0, 1, 2, 5])
def test_all_come_in_order(num: int):
    assert list(prefetch_one(lambda key: key * 10, range(num))) == [key * 10 for key in range(num)]


def test_just_one_is_read_while_another_is_used():
    read = []
    second = threading.Event()

    def note(key: int) -> int:
        read.append(key)
        if key == 1:
            second.set()
        return key

    coming = prefetch_one(note, range(5))
    assert next(coming) == 0
    assert second.wait(10)
    assert read == [0, 1]
    coming.close()


def test_what_reading_raises_comes_at_its_turn():
    coming = prefetch_one(lambda key: 1 // key, (1, 0))
    assert next(coming) == 1
    with pytest.raises(ZeroDivisionError):
        next(coming)
