"""Class names that may be one class, spelt in several ways.

Proposals for a person to decide on, with the counts: `gall_bladder` and
gallbladder, kidneys and kidney, left kidney and kidney left, pancras and
pancreas. Names that differ in a number, or in one letter of a short word, are
never proposed: C1 and C2 are two, and so are rib 1 and rib 2. Ileum and ilium
are proposed although they are two, for one of them may be a slip.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import re

# Words that end in s and are no plural.
SINGULAR_ENDINGS = ("ss", "us", "is", "as", "ps")
PLURALS = {
  "vertebrae": "vertebra",
  "teeth": "tooth",
  "nuclei": "nucleus",
  "arteries": "artery",
  "metastases": "metastasis",
  "diagnoses": "diagnosis",
  "bronchi": "bronchus",
  "atria": "atrium",
  "sulci": "sulcus",
  "gyri": "gyrus",
  "thrombi": "thrombus",
  "lenses": "lens",
}

# Letters of a word below which one letter is another word: rib, hip, lip.
MIN_TYPO = 5


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Names that may be one."""

  names: tuple[tuple[str, int], ...]  # and how often each, most often first
  reasons: tuple[str, ...]  # in what they differ


def clusters(counts: Mapping[str, int]) -> list[Cluster]:
  """Clusters of names, the most frequent first.

  Args:
    counts: name -> how often it is there.
  """
  groups = {name: name for name in counts}
  reasons: dict[str, set[str]] = {}

  def root(name: str) -> str:
    while groups[name] != name:
      groups[name] = name = groups[groups[name]]
    return name

  for one, other, reason in _alike(counts):
    if root(one) != root(other):
      groups[root(one)] = root(other)
      reasons.setdefault(one, set()).add(reason)
  members: dict[str, list[str]] = {}
  for name in counts:
    members.setdefault(root(name), []).append(name)
  found = [
    Cluster(
      tuple(sorted(((n, counts[n]) for n in names), key=lambda x: (-x[1], x))),
      tuple(sorted(set().union(*(reasons.get(n, ()) for n in names)))),
    )
    for names in members.values()
    if len(names) > 1
  ]
  return sorted(found, key=lambda one: -sum(count for _, count in one.names))


def _alike(names: Mapping[str, int]) -> Iterator[tuple[str, str, str]]:
  """Pairs of names, and in what they differ."""
  for reason, key in KEYS.items():
    first: dict[str, str] = {}
    for name in names:
      other = first.setdefault(key(name), name)
      if other != name:
        yield other, name, reason
  for one, other in _typos(names):
    yield one, other, "one letter"


def _words(name: str) -> list[str]:
  return re.findall(r"[^\W_]+", name.lower())


def _folded(name: str) -> str:
  return " ".join(name.lower().split())


def _joined(name: str) -> str:
  return "".join(_words(name))


def _singular(name: str) -> str:
  return " ".join(map(_one, _words(name)))


def _sorted(name: str) -> str:
  return " ".join(sorted(map(_one, _words(name))))


# In what names of one key differ -> the key. Each sees what those before it
# see, and more.
KEYS = {
  "case": _folded,
  "spaces and signs": _joined,
  "number": _singular,
  "order of words": _sorted,
}


def _one(word: str) -> str:
  """The word in the singular, if it seems to be a plural."""
  if word in PLURALS:
    return PLURALS[word]
  if len(word) > 4 and word.endswith("ies"):
    return f"{word[:-3]}y"
  plural = len(word) > 3 and word.endswith("s")
  return word[:-1] if plural and not word.endswith(SINGULAR_ENDINGS) else word


def _typos(names: Mapping[str, int]) -> Iterator[tuple[str, str]]:
  """Pairs one letter apart: left out, put in, another, or two exchanged.

  Both then share a text that is left when one letter is taken away, so that
  not every name needs to be compared with every other.
  """
  texts: dict[str, str] = {}
  for name in names:
    texts.setdefault(" ".join(_words(name)), name)
  shared: dict[str, list[str]] = {}
  for text in texts:
    cut = (text[:place] + text[place + 1 :] for place in range(len(text)))
    for rest in {text, *cut}:
      shared.setdefault(rest, []).append(text)
  seen = set()
  for group in shared.values():
    for place, one in enumerate(group):
      for other in group[place + 1 :]:
        if (one, other) not in seen and _is_typo(one, other):
          seen.add((one, other))
          yield texts[one], texts[other]


def _is_typo(one: str, other: str) -> bool:
  """Whether one word differs in one letter, and is long enough for a slip."""
  words, others = one.split(), other.split()
  if len(words) != len(others):
    return False
  pairs = [(a, b) for a, b in zip(words, others, strict=True) if a != b]
  if len(pairs) != 1:
    return False
  (a, b), shorter = pairs[0], min(map(len, pairs[0]))
  digits = [re.findall(r"\d", word) for word in (a, b)]
  return shorter >= MIN_TYPO and digits[0] == digits[1] and _one_apart(a, b)


def _one_apart(a: str, b: str) -> bool:
  start = 0
  while start < min(len(a), len(b)) and a[start] == b[start]:
    start += 1
  a, b = a[start:], b[start:]
  exchanged = a[:2] == b[1::-1] and a[2:] == b[2:]
  return a[1:] == b[1:] or a[1:] == b or a == b[1:] or exchanged
