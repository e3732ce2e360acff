"""Phrases over the whole registry: new words, and never another class."""

import collections

import pytest

from rcmed_jax.data import prompts
from rcmed_jax.eval import phrases, wordforms
from rcmed_jax.eval.phrases import Phrases, Variant, reworded
from rcmed_jax.eval.registry import Registry
from rcmed_jax.eval.tasks import Task

CT = "computed tomography"


@pytest.fixture(scope="module")
def registry() -> Registry:
  return Registry.load()


@pytest.fixture(scope="module")
def everything(registry) -> Phrases:
  """Of a data set that holds every known task."""
  return Phrases(registry, [info.task for info in registry.infos], seed=0)


def _kinds(made: tuple[Variant, ...]) -> dict[str, str]:
  return {variant.kind: variant.text for variant in made}


def _distance(one: str, other: str) -> int:
  """Damerau's distance with adjacent transpositions, by its recurrence."""
  table = collections.defaultdict(int)
  for i in range(len(one) + 1):
    table[i, 0] = i
  for j in range(len(other) + 1):
    table[0, j] = j
  for i in range(1, len(one) + 1):
    for j in range(1, len(other) + 1):
      table[i, j] = min(
        table[i - 1, j] + 1,
        table[i, j - 1] + 1,
        table[i - 1, j - 1] + (one[i - 1] != other[j - 1]),
      )
      swapped = one[i - 2 : i] == other[j - 2 : j][::-1]
      if i > 1 and j > 1 and swapped:
        table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
  return table[len(one), len(other)]


def test_no_phrase_of_any_task_means_another(registry, everything):
  """For every task: what a phrase is looked up as, in its and any modality."""
  meant = collections.defaultdict(set)  # key -> the tasks it means
  for info in registry.infos:
    for name in info.names:
      meant[info.modality, wordforms.key(name)].add(info.name)
      meant["any", wordforms.key(name)].add(info.name)
  count = 0
  for info in registry.infos:
    for record in range(8):
      for made in everything.variants(info.modality, info.name, str(record)):
        key = wordforms.key(made.text)
        assert meant[info.modality, key] <= {info.name}, made
        assert made.text != info.name
        if made.kind == "typo":
          assert not meant["any", key], made
          assert _distance(made.text, info.name) == 1, made
        count += 1
  assert count > 8 * 2 * len(registry.infos)


def test_kinds_by_hand(registry):
  tasks = [Task(CT, name) for name in ("left kidney", "liver tumor", "polyp")]
  made = Phrases(registry, tasks, seed=1)
  kidney = _kinds(made.variants(CT, "left kidney", "a"))
  assert "synonym" not in kidney  # only Latin, which nobody asks in
  assert kidney["abbreviation"] == "LK"
  assert kidney["order"] == "kidney, left"
  assert "number" not in kidney
  assert kidney["case"] in ("LEFT KIDNEY", "Left Kidney", "Left kidney")
  assert kidney["typo"].startswith("left k")
  tumor = _kinds(made.variants(CT, "liver tumor", "a"))
  assert tumor["order"] == "tumor of the liver"
  assert tumor["number"] == "liver tumors"
  assert "abbreviation" not in tumor  # HCC is one of several liver tumours
  nuclei = _kinds(made.variants("pathology", "nuclei", "a"))
  assert nuclei["number"] == "nucleus"
  for name in ("spleen", "pancreas", "left iliopsoas"):
    assert "number" not in _kinds(made.variants(CT, name, "a"))
  assert "typo" not in _kinds(made.variants(CT, "rib", "a"))


def test_the_data_sets_own_word_is_replaced_by_the_canonical(registry):
  made = Phrases(registry, [Task(CT, "postcava")], seed=0)
  found = {
    _kinds(made.variants(CT, "postcava", str(n)))["synonym"] for n in range(20)
  }
  assert found == {"inferior vena cava", "postcaval vein"}


def test_two_classes_that_are_one_task_lend_each_other_no_name(registry):
  """A data set that tells liver cancer from liver tumour keeps them apart."""
  names = ("liver tumor", "liver cancer")
  made = Phrases(registry, [Task(CT, name) for name in names], seed=0)
  for name in names:
    for record in range(20):
      kinds = _kinds(made.variants(CT, name, str(record)))
      assert not kinds.keys() & {"synonym", "abbreviation"}
      assert kinds["typo"] not in names


def test_a_class_of_the_data_set_is_no_phrase_for_another(registry):
  """The registry takes "colonic polyp" for a polyp; this data set does not."""
  tasks = [Task("endoscopy", name) for name in ("polyp", "colonic polyp")]
  made = Phrases(registry, tasks, seed=0)
  texts = {
    variant.text
    for record in range(40)
    for variant in made.variants("endoscopy", "polyp", str(record))
  }
  assert "colonic polyp" not in texts


def test_a_slip_never_makes_a_word_of_the_data_set(registry):
  """One letter apart: every slip from one to the other is left out."""
  names = ("ileum", "ilium", "illeum", "ilem")
  made = Phrases(registry, [Task(CT, name) for name in names], seed=0)
  slips = {
    _kinds(made.variants(CT, "ileum", str(n)))["typo"] for n in range(300)
  }
  assert len(slips) > 8
  assert not slips & set(names)
  assert "illeum" in set(phrases._typos("ileum"))


def test_unknown_classes_have_what_needs_no_knowledge(registry):
  made = Phrases(registry, [Task(CT, "left flux_capacitor")], seed=0)
  kinds = _kinds(made.variants("ct", "left_flux_capacitor", "a"))
  assert kinds.keys() == {"order", "case", "typo"}
  assert kinds["order"] == "flux capacitor, left"


def test_draws_depend_on_seed_record_and_class_only(registry):
  tasks = [Task(CT, name) for name in ("liver", "spleen", "pancreas")]
  first = Phrases(registry, tasks, seed=3)
  again = Phrases(registry, reversed(tasks), seed=3)
  other = Phrases(registry, tasks, seed=4)
  records = [f"{number}" for number in range(30)]
  made = [first.variants(CT, "pancreas", record) for record in records]
  first.variants(CT, "liver", "0")
  assert (
    made == [again.variants(CT, "pancreas", r) for r in records[::-1]][::-1]
  )
  assert made != [other.variants(CT, "pancreas", r) for r in records]
  assert len({_kinds(variants)["typo"] for variants in made}) > 10


def test_reworded_changes_the_class_only():
  asked = prompts.question(("left kidney",), CT, 0)
  assert asked.startswith("Can you segment the left kidney in")
  said = reworded(asked, "Left Kidney", "LK")
  assert said == asked.replace("left kidney", "LK")
  with pytest.raises(ValueError, match="does not name 'kid'"):
    reworded(asked, "kid", "child")
