"""Read items in advance in threads, and cut a stream of arrays into batches."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Key = TypeVar("Key")
Item = TypeVar("Item")

THREAD_NAME = "prefetch"


def prefetch(
    read: Callable[[Key], Item], keys: Iterable[Key], *, num: int = 1, num_ahead: int = 0
) -> Generator[Item, None, None]:
    """Yield ``read(key)`` for each key in order; ``num`` threads read the next items in advance.

    ``num_ahead`` is the number of items that are read or waiting to be read; 0 means ``num``.
    """
    remaining = iter(keys)
    with ThreadPoolExecutor(num, thread_name_prefix=THREAD_NAME) as readers:
        try:
            futures = deque(
                readers.submit(read, key) for key in islice(remaining, num_ahead or num)
            )
            while futures:
                item = futures.popleft().result()
                futures.extend(readers.submit(read, key) for key in islice(remaining, 1))
                yield item
        finally:
            readers.shutdown(cancel_futures=True)


def rebatch(
    arrays: Iterable[NDArray[Any]], *, batch_size: int
) -> Generator[NDArray[Any], None, None]:
    """Join arrays along the first axis, and cut the result into batches of ``batch_size`` rows.

    The last batch may be shorter.
    """
    parts: list[NDArray[Any]] = []
    for array in arrays:
        parts.append(array)
        if num_batches := sum(map(len, parts)) // batch_size:
            joined = np.concatenate(parts)
            yield from np.split(joined[: num_batches * batch_size], num_batches)
            parts = [joined[num_batches * batch_size :]]
    if any(map(len, parts)):
        yield np.concatenate(parts)
