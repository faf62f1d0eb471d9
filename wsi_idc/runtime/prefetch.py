"""Read what comes next while the present is being computed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Key = TypeVar("Key")
Found = TypeVar("Found")

THREAD_NAME = "read-ahead"


def prefetch_one(read: Callable[[Key], Found], keys: Iterable[Key]) -> Iterator[Found]:
    """Yield ``read(key)`` of each key in order, the next one read by a thread meanwhile."""
    return prefetch(read, keys, num=1)


def prefetch(read: Callable[[Key], Found], keys: Iterable[Key], *, num: int) -> Iterator[Found]:
    """Yield ``read(key)`` of each key in order, the next ``num`` read by threads meanwhile."""
    waiting = iter(keys)
    with ThreadPoolExecutor(num, thread_name_prefix=THREAD_NAME) as readers:
        try:
            coming = deque(readers.submit(read, key) for key in islice(waiting, num))
            while coming:
                found = coming.popleft().result()
                coming.extend(readers.submit(read, key) for key in islice(waiting, 1))
                yield found
        finally:
            readers.shutdown(cancel_futures=True)
