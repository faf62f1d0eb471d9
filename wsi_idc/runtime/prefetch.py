"""Prefetching: threads read the next items while the current one is used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")

THREAD_NAME = "prefetch"


def prefetch(read: Callable[[Key], Item], keys: Iterable[Key], *, num: int = 1) -> Iterator[Item]:
    """Yield ``read(key)`` for each key in order; ``num`` threads read the next items meanwhile."""
    remaining = iter(keys)
    with ThreadPoolExecutor(num, thread_name_prefix=THREAD_NAME) as readers:
        try:
            futures = deque(readers.submit(read, key) for key in islice(remaining, num))
            while futures:
                item = futures.popleft().result()
                futures.extend(readers.submit(read, key) for key in islice(remaining, 1))
                yield item
        finally:
            readers.shutdown(cancel_futures=True)
