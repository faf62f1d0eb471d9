"""Read the next batch while the present one is being computed."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Found = TypeVar("Found")


def one_ahead(read: Callable[[Key], Found], keys: Iterable[Key]) -> Iterator[Found]:
    """Yield ``read(key)`` of each key in order, the next one read by a thread meanwhile."""
    waiting = iter(keys)
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(read, key) for key in _first(waiting)]
        while coming:
            found = coming.pop().result()
            coming = [reader.submit(read, key) for key in _first(waiting)]
            yield found


def _first(keys: Iterator[Key]) -> list[Key]:
    for key in keys:
        return [key]
    return []
