"""Other words for a class: what users write where the data has one name.

  synonym       postcava               for inferior vena cava
  abbreviation  IVC                    for inferior vena cava
  order         kidney, left           for left kidney
                tumor of the liver     for liver tumor
  number        polyps                 for polyp
  case          LEFT KIDNEY            for left kidney
  typo          left kidny             for left kidney

A phrase must still mean its class: none that the registry or the data set
knows as another one is given. Phrases are for questions that name one class:
beside others "kidney, left" would read as two.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import hashlib
import re

import numpy as np

from rcmed_jax.data import describe
from rcmed_jax.eval import task_table, wordforms
from rcmed_jax.eval.registry import Registry
from rcmed_jax.eval.tasks import Task, TaskInfo

KINDS = ("synonym", "abbreviation", "order", "number", "case", "typo")

# Words shorter than this get no typo: of "rib" too little would be left.
SHORTEST = 4
# Letters beside each other on an English keyboard.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")

# Heads of names that have a plural, beside those of tasks that are counted.
_COUNTED = {
  *("artery", "vein", "vessel", "tumor", "lesion", "cyst", "nodule", "mass"),
  *("metastasis", "polyp", "opacity", "effusion", "fracture", "aneurysm"),
}
# Heads that can stand before "of the liver".
_FINDINGS = {"tumor", "cyst", "lesion", "nodule", "metastasis", "infection"}
_PLACES = {"organ", "part", "bone"}  # kinds of what they can be of


@dataclasses.dataclass(frozen=True)
class Variant:
  """Words that stand for a class in a question."""

  kind: str  # one of KINDS
  text: str


class Phrases:
  """Other words for the classes of a data set."""

  def __init__(self, registry: Registry, tasks: Iterable[Task], seed: int):
    """Reads what other classes are called.

    Args:
      registry: what is known by which name.
      tasks: of the data set; no phrase for one of them means another.
      seed: of all draws.
    """
    self._registry = registry
    self._seed = seed
    # modality -> key of a class -> the known task it is, None: not known.
    self._classes: dict[str, dict[str, Task | None]] = {}
    words: set[str] = set()
    for task in tasks:
      info = registry.task(task.modality, task.name)
      classes = self._classes.setdefault(info.modality, {})
      classes[wordforms.key(task.name)] = info.task if info.known else None
      words.update(wordforms.key(task.name).split())
    self._named: set[str] = set()  # keys of all names in all modalities
    self._places: set[str] = set()  # of what a finding can be of
    for info in registry.infos:
      keys = {wordforms.key(name) for name in info.names}
      self._named |= keys
      self._places |= keys if info.kind in _PLACES else set()
      words.update(word for name in keys for word in name.split())
    self._words = frozenset({*words, *wordforms.SIDES})

  def variants(
    self, modality: str, name: str, record: str
  ) -> tuple[Variant, ...]:
    """Returns one phrase of each kind that the class has, in order of `KINDS`.

    The same seed, record and class give the same phrases, whatever else is
    asked.

    Args:
      modality: of the image.
      name: the class as the data set has it.
      record: the record's id.
    """
    modality = task_table.modality_name(modality)
    name = wordforms.plain(name)
    info = self._registry.task(modality, name)
    found = []
    for kind in KINDS:
      texts = [
        text
        for text in dict.fromkeys(self._texts(kind, name, info))
        if self._means(kind, text, name, info)
      ]
      if texts:
        random = self._random(kind, name, record)
        found.append(Variant(kind, texts[int(random.integers(len(texts)))]))
    return tuple(found)

  def _texts(self, kind: str, name: str, info: TaskInfo) -> Iterator[str]:
    """Yields the phrases of a kind, safe or not."""
    if kind == "synonym":
      yield from (info.name, *info.synonyms)
    elif kind == "abbreviation":
      yield from info.abbreviations
    elif kind == "order":
      yield from self._orders(name)
    elif kind == "number":
      yield from _numbers(name, info)
    elif kind == "case":
      yield from (name.upper(), name.title(), name[:1].upper() + name[1:])
    else:
      yield from _typos(name)

  def _means(self, kind: str, text: str, name: str, info: TaskInfo) -> bool:
    """Returns whether a text is new, and can only mean this class."""
    key, own = wordforms.key(text), wordforms.key(name)
    if kind == "case":
      return text not in (name, name.lower())
    if text.lower() == name.lower():
      return False
    if kind == "typo":
      changed = set(key.split()) - set(own.split())
      return bool(changed) and not (changed & self._words or key in self._named)
    if key == own:  # a synonym of this kind is none
      return kind in ("number", "order")
    classes = self._classes.get(info.modality, {})
    if key in classes:
      return False
    told = self._registry.task(info.modality, text)
    if not info.known:
      return not told.known
    # Two classes of the data set that are one task share its other names.
    others = [task for place, task in classes.items() if place != own]
    return info.task not in others and (not told.known or told == info)

  def _orders(self, name: str) -> Iterator[str]:
    words = name.split()
    if len(words) < 2:
      return
    if words[0].lower() in wordforms.SIDES:
      yield f"{' '.join(words[1:])}, {words[0]}"
    place, finding = " ".join(words[:-1]), words[-1]
    is_finding = wordforms.singular(finding.lower()) in _FINDINGS
    if is_finding and wordforms.key(place) in self._places:
      yield f"{finding} of the {place}"

  def _random(self, kind: str, name: str, record: str) -> np.random.Generator:
    text = f"{self._seed}\nphrases\n{kind}\n{record}\n{name}"
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def reworded(question: str, name: str, phrase: str) -> str:
  """Returns the question with a phrase in the place of a class name.

  Raises:
    ValueError: the question does not name the class.
  """
  place = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", question, re.IGNORECASE)
  if not place:
    raise ValueError(
      f"the question {question!r} does not name {name!r}; expected the class "
      "in it, as `prompts.question` writes it."
    )
  return question[: place.start()] + phrase + question[place.end() :]


def _numbers(name: str, info: TaskInfo) -> Iterator[str]:
  """Yields the name in the other number, of what there can be several."""
  # Canonical names are singular, whatever they end with: iliopsoas.
  canonical = info.known and name.lower() == info.name.lower()
  if describe.verb(name) == "are" and not canonical:
    yield wordforms.singular(name)
    return
  head = wordforms.singular(name.split(" of ")[0].split()[-1].lower())
  if not info.side and (info.instances or head in _COUNTED):
    yield wordforms.plural(name)


def _typos(name: str) -> Iterator[str]:
  """Yields the name with one slip: a letter left out, doubled, taken for its
  neighbour on the keyboard, or two changed over.

  The first letter of a word stays, and so do sides, short words and words with
  digits: slips there change more than the spelling.
  """
  for word in re.finditer(r"[^\W\d_]+", name):
    text = word.group()
    if len(text) < SHORTEST or text.lower() in wordforms.SIDES:
      continue
    if name[word.end() : word.end() + 1].isdigit():
      continue
    for place in range(1, len(text)):
      before, letter, after = text[:place], text[place], text[place + 1 :]
      slips = [before + after, before + letter + letter + after]
      slips += [before + near + after for near in _beside(letter)]
      if after and after[0] != letter:
        slips.append(before + after[0] + letter + after[1:])
      for slip in slips:
        yield name[: word.start()] + slip + name[word.end() :]


def _beside(letter: str) -> Iterator[str]:
  for row in _ROWS:
    place = row.find(letter)
    if place >= 0:
      yield from row[max(place - 1, 0) : place] + row[place + 1 : place + 2]
