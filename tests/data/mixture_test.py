import collections
import dataclasses

import numpy as np
import pytest

from rcmed_jax.data import mixture, readers
from rcmed_jax.data.mixture import Mixture
from rcmed_jax.data.records import Record


def records(*classes, modality="pathology", dataset="one"):
  """A record for each tuple of classes."""
  return [
    Record(
      "", f"{dataset}/{n}", tuple(("", c) for c in names), modality, dataset
    )
    for n, names in enumerate(classes)
  ]


# 90 livers, 9 that also show a spleen, 1 that shows a cyst beside a liver.
SKEWED = records(
  *[("liver",)] * 90, *[("liver", "spleen")] * 9, ("liver", "cyst")
)


def indices(items, count, seed=0, temperature=1.0):
  dataset = mixture.order(items, seed, temperature)
  return [dataset[place] for place in range(count)]


def test_parts_lie_one_after_another():
  one, two = records(("a",), ("b",)), records(("c",), dataset="two")
  both = Mixture([one, two], [1, 1])
  assert list(both) == one + two == [both[place] for place in range(3)]
  assert both[-1] == two[0] and both[1:] == [one[1], two[0]]
  with pytest.raises(IndexError):
    both[3]


def test_classes_of_a_set_in_two_parts_are_joined():
  one = records(("a",), ("b",))
  two = records(("c",)) + records(("d",), dataset="two")
  both = Mixture([one, two], [1, 5])
  assert mixture.class_table(both) == readers.class_table(one + two)
  assert mixture.class_table(both)["one", "pathology"] == ("a", "b", "c")


def test_one_set_as_it_lies_comes_once_an_epoch():
  found = indices(SKEWED, 300)
  epochs = [found[start : start + 100] for start in (0, 100, 200)]
  assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]


def test_shares_are_those_of_the_weights():
  sizes = (50, 5, 20)
  parts = [records(*[("a",)] * size, dataset=str(size)) for size in sizes]
  found = np.array(indices(Mixture(parts, (3, 1, 2)), 600))
  ends = np.cumsum(sizes)
  shares = [
    ((found >= end - size) & (found < end)).mean()
    for size, end in zip(sizes, ends, strict=True)
  ]
  assert shares == pytest.approx([1 / 2, 1 / 6, 1 / 3], abs=0.01)
  # Within a part every record comes before one comes again.
  of_first = found[found < 50]
  assert sorted(of_first[:50]) == sorted(of_first[50:100]) == list(range(50))
  assert of_first[:50].tolist() != of_first[50:100].tolist()


def test_a_record_is_of_its_rarest_class_in_its_modality():
  items = SKEWED + records(("liver",), (), modality="ultrasound")
  found = mixture.tasks(items)
  assert {key: len(group) for key, group in found.items()} == {
    ("pathology", "cyst"): 1,
    ("pathology", "liver"): 90,
    ("pathology", "spleen"): 9,
    ("ultrasound", ""): 1,
    ("ultrasound", "liver"): 1,
  }
  assert sorted(n for group in found.values() for n in group) == list(
    range(len(items))
  )


@pytest.mark.parametrize("temperature", [1.5, 2.0, 5.0])
def test_temperature_flattens_tasks(temperature):
  found = collections.Counter(
    "liver" if index < 90 else "spleen" if index < 99 else "cyst"
    for index in indices(SKEWED, 1500, temperature=temperature)
  )
  sizes = np.array([90, 9, 1]) ** (1 / temperature)
  shares = [found[name] / 1500 for name in ("liver", "spleen", "cyst")]
  assert shares == pytest.approx((sizes / sizes.sum()).tolist(), rel=0.03)


def test_the_place_and_the_seed_decide():
  items = Mixture([SKEWED, records(("x",), ("y",))], (2, 1))
  one = indices(items, 200, temperature=2.0)
  dataset = mixture.order(items, 0, 2.0)
  assert [dataset[place] for place in (199, 7, 64)] == [
    one[199],
    one[7],
    one[64],
  ]
  assert indices(items, 200, temperature=2.0) == one
  assert indices(items, 200, seed=1, temperature=2.0) != one


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -2)])
def test_weights_must_fit(weights):
  with pytest.raises(ValueError, match="a positive weight for each of 2 sets"):
    Mixture([SKEWED, SKEWED], weights)


def test_records_may_be_anything_that_tells_its_classes():
  @dataclasses.dataclass
  class Told:
    modality: str
    classes: tuple[str, ...]

  assert mixture.tasks([Told("pet", ("b", "a"))]) == {("pet", "a"): [0]}
