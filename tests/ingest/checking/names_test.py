import itertools
import random
import string
import time

import pytest

from rcmed_jax.ingest.checking import names


def proposed(*found):
  return [
    (set(dict(cluster.names)), cluster.reasons)
    for cluster in names.clusters(dict.fromkeys(found, 1))
  ]


@pytest.mark.parametrize(
  ("one", "other", "reason"),
  [
    ("gall bladder", "gallbladder", "spaces and signs"),
    ("gall-bladder", "gall bladder", "spaces and signs"),
    ("Liver", "liver", "case"),
    ("kidneys", "kidney", "number"),
    ("lung vessels", "lung vessel", "number"),
    ("vertebrae", "vertebra", "number"),
    ("biopsies", "biopsy", "number"),
    ("left kidney", "kidney left", "order of words"),
    ("left kidneys", "Kidney, left", "order of words"),
    ("pancras", "pancreas", "one letter"),
    ("pancraes", "pancreas", "one letter"),
    ("tumour", "tumor", "one letter"),
    ("skin lesoin", "skin lesion", "one letter"),
  ],
)
def test_one_class_in_two_spellings(one, other, reason):
  assert proposed(one, "heart", other) == [({one, other}, (reason,))]


@pytest.mark.parametrize(
  ("one", "other"),
  [
    ("rib 1", "rib 2"),
    ("vertebra C1", "vertebra C2"),
    ("left kidney", "right kidney"),
    ("hip", "lip"),
    ("lung", "lunge of air"),
    ("upper lobe", "lower lobe"),
    ("pancreas", "pancreatic duct"),
    ("lens", "len"[:2]),
    ("malignant tumor", "benign tumor"),
  ],
)
def test_two_classes_stay_two(one, other):
  assert proposed(one, other) == []


def test_clusters_grow_over_several_ways_and_carry_counts():
  (cluster, other) = names.clusters(
    {"Kidney": 1, "kidneys": 5, "kidnay": 2, "kidney": 9, "eye": 1, "eyes": 1}
  )
  assert cluster.names == (
    ("kidney", 9),
    ("kidneys", 5),
    ("kidnay", 2),
    ("Kidney", 1),
  )
  assert cluster.reasons == ("case", "number", "one letter")
  assert dict(other.names) == {"eye": 1, "eyes": 1}


def apart(one, other):
  """Whether one edit makes one the other, by making every edit."""
  letters = string.ascii_lowercase
  cuts = [(one[:n], one[n:]) for n in range(len(one) + 1)]
  edits = {a + b[1:] for a, b in cuts if b}
  edits |= {a + letter + b[1:] for a, b in cuts if b for letter in letters}
  edits |= {a + letter + b for a, b in cuts for letter in letters}
  edits |= {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
  return other in edits


def test_slips_are_found_as_by_trying_every_edit():
  rng = random.Random(0)
  words = {"".join(rng.choices("abc", k=rng.randint(5, 7))) for _ in range(150)}
  found = {frozenset(pair) for pair in names._typos(dict.fromkeys(words, 1))}
  assert found == {
    frozenset((one, other))
    for one, other in itertools.combinations(words, 2)
    if apart(one, other)
  }


def test_many_names_take_no_time():
  rng = random.Random(0)
  many = {
    " ".join("".join(rng.choices(string.ascii_lowercase, k=8)) for _ in "ab"): 1
    for _ in range(20_000)
  }
  began = time.process_time()
  names.clusters(many)
  assert time.process_time() - began < 8
