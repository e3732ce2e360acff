"""Requests of one shape together, as many as a compiled program takes.

Which requests share a batch depends on their order alone, and not on how many
devices answer: a device always computes the same number of rows, and a row's
numbers depend on that number and on nothing in the other rows. That makes
answers the same to the last bit on one device and on many.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def batches(
  items: Iterable[Item], key: Callable[[Item], Key], size: int
) -> Iterator[tuple[Key, list[tuple[int, Item]]]]:
  """(key, [(number, item), ...]): items of one key, `size` of them or fewer.

  A batch comes as soon as it is full; what is left comes at the end, in the
  order in which the keys were first seen. Items are numbered from 0 as they
  come, each is in one batch.
  """
  waiting: dict[Key, list[tuple[int, Item]]] = {}
  for number, item in enumerate(items):
    held = waiting.setdefault(key(item), [])
    held.append((number, item))
    if len(held) == size:
      yield key(item), waiting.pop(key(item))
  yield from waiting.items()
