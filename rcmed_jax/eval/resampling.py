"""Bootstrap over images: what other images of the same kind would have given.

A draw takes as many images as there are, with replacement, and all values of
each, because the masks of one image are not independent. One seed draws the
same images for any grouping and any model, so that differences are paired.

Resampled means vary too little, by sqrt((N - 1) / N) of the N images drawn, and
a normal's tails are too thin for a mean of few, where Student's are right. So
an interval's ends are not the 2.5th and 97.5th percentile but those of a normal
at -+ t(0.975, n - 1) sqrt(N / (N - 1)), n the images of the group: 2.2 for 60
of 60, 0.9 for 10 of 10. Below `FEWEST` images there is no interval: what they
scatter by is not known, and any percentile would promise too much.

A mean over groups is worth `worth` images. A draw that misses a group leaves
that group's mean where it is: which tasks there are is no matter of chance.

Source: Hesterberg, The American Statistician 2015, "expanded percentile";
Satterthwaite, Biometrics Bulletin 1946, for the mean over groups.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

import numpy as np
from scipy import sparse, stats

LEVEL = 0.95
FEWEST = 6  # images of a group that has an interval
# Of the weights that are held at once: 80 MB of float64.
_CELLS = 10_000_000

Interval = tuple[float | None, float | None]  # low, high; None: there is none


@dataclasses.dataclass(frozen=True)
class Draws:
  """The means of groups, as they are and on resampled images."""

  groups: tuple[Any, ...]  # sorted
  images_G: tuple[int, ...]  # that hold a value of the group
  drawn: int  # images in each resampling
  mean_G: np.ndarray  # float64
  means_KG: np.ndarray  # float64; NaN where a draw misses the group

  def interval(self, group: Any) -> Interval:
    """Returns the 95% interval of one group's mean."""
    place = self.groups.index(group)
    return interval(self.means_KG[:, place], self.images_G[place], self.drawn)

  @property
  def macro_K(self) -> np.ndarray:
    """The mean over groups, on each resampling."""
    means_KG = np.where(np.isnan(self.means_KG), self.mean_G, self.means_KG)
    return means_KG.mean(axis=1)

  @property
  def worth(self) -> float:
    """How many images the mean over groups is worth; see `worth`."""
    return worth(self.images_G, self.drawn)

  def macro(self) -> Interval:
    """Returns the 95% interval of the mean over groups."""
    return interval(self.macro_K, self.worth, self.drawn)


def resample(
  values: Sequence[float],
  images: Sequence[str],
  groups: Sequence[Any],
  *,
  draws: int,
  seed: int,
  universe: Sequence[str] | None = None,
) -> Draws:
  """Returns each group's mean, and the same on resampled images.

  Args:
    values: at least one number, each of an image and a group.
    images, groups: of each value; groups can be hashed and sorted.
    draws: resamplings; 0: none.
    universe: the images that are drawn from, all that have a value or more;
      None: those that have one.
  """
  image_N, names = _places(images, universe)
  group_N, keys = _places(groups)
  shape = (len(names), len(keys))
  at = (image_N, group_N)
  total_IG = sparse.csr_array((np.asarray(values, float), at), shape=shape)
  number_IG = sparse.csr_array((np.ones(len(image_N)), at), shape=shape)
  held = np.unique(np.stack(at), axis=1)[1]
  blocks = [
    _means(weights_KI, total_IG, number_IG)
    for weights_KI in _weights(len(names), draws, seed)
  ]
  return Draws(
    groups=tuple(keys),
    images_G=tuple(np.bincount(held, minlength=len(keys)).tolist()),
    drawn=len(names),
    mean_G=_means(np.ones((1, len(names))), total_IG, number_IG)[0],
    means_KG=np.concatenate([np.empty((0, len(keys))), *blocks]),
  )


def interval(draws_K: np.ndarray, images: float, drawn: int) -> Interval:
  """Returns the 95% interval of a resampled mean; None where there is none.

  Args:
    draws_K: the mean on each resampling; NaN where it missed the group.
    images: that the mean is made of, or is `worth`.
    drawn: images in each resampling.
  """
  if images < FEWEST or not draws_K.size:
    return None, None
  quantile = stats.t.ppf((1 + LEVEL) / 2, images - 1)
  tail = stats.norm.cdf(-quantile * np.sqrt(drawn / (drawn - 1)))
  low, high = np.nanpercentile(draws_K, (100 * tail, 100 * (1 - tail)))
  return float(low), float(high)


def worth(images_G: Sequence[int], drawn: int) -> float:
  """Returns how many images of one group know as much of their scatter.

  1 + (sum of 1 / n)^2 / sum of 1 / (n^2 (n - 1)) over groups of n images, as if
  the images of all groups scattered alike; at most the images drawn, since
  groups may share them. One group is worth its images. 0 where a group has
  fewer than `FEWEST`: nothing tells what it adds.
  """
  if min(images_G) < FEWEST:
    return 0.0
  n_G = np.array(images_G, np.float64)
  freedom = np.sum(1 / n_G) ** 2 / np.sum(1 / (n_G**2 * (n_G - 1)))
  return min(round(1 + float(freedom), 6), float(drawn))


def _means(weights_KI: np.ndarray, total_IG: Any, number_IG: Any) -> np.ndarray:
  """float64[K, G]: weighted means; NaN where a group has no weight."""
  total_KG, number_KG = weights_KI @ total_IG, weights_KI @ number_IG
  mean_KG = np.full(total_KG.shape, np.nan)
  np.divide(total_KG, number_KG, out=mean_KG, where=number_KG > 0)
  return mean_KG


def _weights(images: int, draws: int, seed: int) -> Iterator[np.ndarray]:
  """float64[K, I]: how often each image counts, block by block."""
  random = np.random.default_rng(seed)
  block = max(_CELLS // images, 1)
  for start in range(0, draws, block):
    yield np.stack(
      [
        np.bincount(random.integers(0, images, images), minlength=images)
        for _ in range(min(block, draws - start))
      ]
    ).astype(np.float64)


def _places(
  keys: Sequence[Any], all_keys: Sequence[Any] | None = None
) -> tuple[np.ndarray, list[Any]]:
  """Returns each key's place among the sorted distinct keys, and these."""
  distinct = sorted(set(keys if all_keys is None else all_keys))
  places = {key: place for place, key in enumerate(distinct)}
  return np.array([places[key] for key in keys], np.int64), distinct
