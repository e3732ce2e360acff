"""Pictures that are there twice: to the pixel, or nearly so.

Nearly: their perceptual hashes (64 bits of the low frequencies, `imagehash`)
differ in a few bits. A picture saved again, a little larger or brighter keeps
all but a few; so do neighbouring slices of a volume, and pictures of one kind
taken in one way: what is found is to be looked at.

Three million hashes are compared in half a minute: of B bands into which 64
bits are cut, hashes that differ in D bits share B - D, so that only hashes
which share some `SHARED` bands, sorted by those, need to be compared.
"""

from collections.abc import Iterator
import hashlib
import itertools

import cv2
import imagehash
import numpy as np
import PIL.Image
import scipy.sparse
import scipy.sparse.csgraph

HASH_BITS = 64

# Bands that a pair shares, by which it is found: 27 bits or more of the hash,
# so that few other hashes share them by chance.
SHARED = 3

# What the hash sees is smaller; this is what it is made of quickly.
REDUCED = 128

# Brightness deviates less in a picture without anything in it, and its hash is
# noise.
MIN_DEVIATION = 2.0

# Pairs compared at once; 8 bytes each.
CHUNK = 4_000_000


def exact_hash(image_IJC: np.ndarray) -> int:
  """64 bits of the pixels and their grid."""
  digest = hashlib.blake2b(digest_size=8)
  digest.update(repr(image_IJC.shape).encode())
  digest.update(np.ascontiguousarray(image_IJC).data)
  return int.from_bytes(digest.digest(), "little")


def perceptual_hash(image_IJC: np.ndarray) -> int | None:
  """64 bits of what is seen; None: there is nothing to see.

  Args:
    image_IJC: uint8[I, J, 3].
  """
  grey_IJ = cv2.cvtColor(image_IJC, cv2.COLOR_RGB2GRAY)
  small_IJ = cv2.resize(grey_IJ, (REDUCED,) * 2, interpolation=cv2.INTER_AREA)
  if small_IJ.std() < MIN_DEVIATION:
    return None
  bits = imagehash.phash(PIL.Image.fromarray(small_IJ)).hash
  return int.from_bytes(np.packbits(bits).tobytes(), "big")


def equal_groups(hashes_N: np.ndarray) -> list[np.ndarray]:
  """Places of hashes that are there more than once, a group a value."""
  order = np.argsort(hashes_N, kind="stable")
  sorted_N = hashes_N[order]
  # Whether each is equal to the one before it; of most it is to neither side.
  same = np.zeros(len(order) + 1, bool)
  same[1:-1] = sorted_N[1:] == sorted_N[:-1]
  several = same[1:] | same[:-1]
  firsts = np.flatnonzero(~same[:-1][several])
  return np.split(order[several], firsts[1:]) if several.any() else []


def near_groups(hashes_N: np.ndarray, distance: int) -> list[np.ndarray]:
  """Places of hashes that differ in at most `distance` bits.

  What is near a member is a member: the ends of a chain may be farther apart.

  Args:
    hashes_N: uint64[N].
    distance: bits, 0 to 8.

  Raises:
    ValueError: another distance.
  """
  if not 0 <= distance <= 8:
    raise ValueError(
      f"distance={distance}: expected 0 to 8 of {HASH_BITS} bits; beyond that "
      "pictures of one kind are all near."
    )
  values, inverse = np.unique(hashes_N, return_inverse=True)
  labels = np.arange(len(values))
  # Pairs are joined as they are found: there may be more than fit in memory.
  for left, right in _near_pairs(values, distance):
    one, other = labels[left], labels[right]
    apart = one != other
    if apart.any():
      graph = scipy.sparse.coo_matrix(
        (np.ones(apart.sum(), bool), (one[apart], other[apart])),
        (len(values), len(values)),
      )
      _, joined = scipy.sparse.csgraph.connected_components(graph, False)
      labels = joined[labels]
  return equal_groups(labels[inverse])


def _near_pairs(
  values: np.ndarray, distance: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Places of pairs of different values; a pair may come several times."""
  if not distance or len(values) < 2:
    return
  edges = np.linspace(0, HASH_BITS, distance + SHARED + 1).round().astype(int)
  bands = [
    np.uint64((1 << int(high)) - (1 << int(low)))
    for low, high in itertools.pairwise(edges)
  ]
  for chosen in itertools.combinations(bands, SHARED):
    keys = values & np.bitwise_or.reduce(chosen)
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    ends = np.append(starts[1:], len(keys))
    found = _near_within(values, order, starts, ends, distance)
    yield from _gathered(found)


def _near_within(
  values: np.ndarray,
  order: np.ndarray,
  starts: np.ndarray,
  ends: np.ndarray,
  distance: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Pairs of each run [start, end) of `order` that are near enough.

  Each place is compared with those `step` further on in its run, for every
  step: as many rounds as the longest run has members, of which few are long.
  """
  rest = np.repeat(ends, ends - starts) - np.arange(len(order)) - 1
  places = np.flatnonzero(rest > 0)
  step = 1
  while len(places):
    for chunk in np.array_split(places, -(-len(places) // CHUNK)):
      left, right = order[chunk], order[chunk + step]
      near = np.bitwise_count(values[left] ^ values[right]) <= distance
      yield left[near], right[near]
    step += 1
    places = places[rest[places] >= step]


def _gathered(
  pairs: Iterator[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """The pairs in fewer, larger parts."""
  parts, count = [], 0
  for left, right in pairs:
    parts.append((left, right))
    count += len(left)
    if count > CHUNK:
      yield _joined(parts)
      parts, count = [], 0
  if count:
    yield _joined(parts)


def _joined(
  parts: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
  lefts, rights = zip(*parts, strict=True)
  return np.concatenate(lefts), np.concatenate(rights)
