"""Forms of a class name: what users write for one and the same thing.

`key` maps them to one text, so that names are looked up whatever their case,
number, word order, underscores and British or American spelling:

  "Kidney_Left", "left kidneys", "kidney, left", "lt. kidney" -> "left kidney"

A key is for comparison and never shown: "pancreas" has the key "pancrea".
"""

from collections.abc import Callable
import functools
import re

SIDES = ("left", "right")

# Abbreviated sides; a lone "l" or "r" is left alone, as in "vertebra L".
_SHORT_SIDES = {"lt": "left", "rt": "right"}
# British spellings within words -> American ones.
_SPELLINGS = (
  ("haem", "hem"),
  ("oedem", "edem"),
  ("oesoph", "esoph"),
  ("tumour", "tumor"),
  ("ischaem", "ischem"),
  ("leukaem", "leukem"),
  ("coeliac", "celiac"),
  ("foetal", "fetal"),
  ("grey", "gray"),
  ("naev", "nev"),
)
# Singular -> plural, where no ending tells. Latin as in radiology.
_IRREGULAR = {
  "tooth": "teeth",
  "vertebra": "vertebrae",
  "clavicula": "claviculae",
  "costa": "costae",
  "scapula": "scapulae",
  "papilla": "papillae",
  "bacterium": "bacteria",
  "mitochondrion": "mitochondria",
  "nucleus": "nuclei",
  "bronchus": "bronchi",
  "glomerulus": "glomeruli",
  "embolus": "emboli",
  "humerus": "humeri",
  "thrombus": "thrombi",
  "calculus": "calculi",
  "nevus": "nevi",
  "lumen": "lumina",
  "foramen": "foramina",
  "femur": "femora",
  "meniscus": "menisci",
  "metastasis": "metastases",
  "diagnosis": "diagnoses",
  "keratosis": "keratoses",
}
_SINGULARS = {plural: singular for singular, plural in _IRREGULAR.items()}


@functools.lru_cache(maxsize=65536)
def key(name: str) -> str:
  """Returns the text that all forms of a name share; "" where it has no word.

  The side leads, whatever its place: of "lung upper lobe left" and "left upper
  lobe of the lung" only the first has the key "left lung upper lobe"; for the
  second the registry holds a synonym.
  """
  text = re.sub(r"['’]s\b", "s", plain(name).lower())
  words: list[str] = re.findall(r"[^\W_]+", text)
  words = [_SHORT_SIDES.get(word, word) for word in words]
  side = [word for word in words if word in SIDES]
  rest = [word for word in words if word not in (*SIDES, "the")]
  return " ".join([*side, *(_stem(word) for word in rest)])


def side(name: str) -> str:
  """Returns "left" or "right" where the name says so, else ""."""
  words = key(name).split()
  found = [word for word in SIDES if word in words]
  return found[0] if len(found) == 1 else ""


def plain(name: str) -> str:
  """Returns the name as text: spaces for underscores, each only once."""
  return " ".join(name.replace("_", " ").split())


def plural(name: str) -> str:
  """Returns the name with its head noun in the plural.

  The head of "tumor of the liver" is "tumor", that of "liver tumor" the last
  word.
  """
  return _at_head(name, _plural)


def singular(name: str) -> str:
  """Returns the name with its head noun in the singular."""
  return _at_head(name, _singular)


def _at_head(name: str, change: Callable[[str], str]) -> str:
  head, of, rest = name.partition(" of ")
  *before, noun = head.split(" ")
  return " ".join([*before, change(noun)]) + of + rest


def _plural(noun: str) -> str:
  if noun in _IRREGULAR:
    return _IRREGULAR[noun]
  if noun.endswith(("s", "x", "z", "ch", "sh")):
    return f"{noun}es"
  if noun.endswith("y") and noun[-2:-1] not in "aeiou":
    return f"{noun[:-1]}ies"
  return f"{noun}s"


def _singular(noun: str) -> str:
  if noun in _SINGULARS:
    return _SINGULARS[noun]
  if noun.endswith("ies") and len(noun) > 4:
    return f"{noun[:-3]}y"
  if noun.endswith(("ses", "xes", "zes", "ches", "shes")):
    return noun[:-2]
  if noun.endswith("s") and not noun.endswith(("ss", "us", "is")):
    return noun[:-1]
  return noun


def _stem(word: str) -> str:
  """The word in American spelling and in one number."""
  for british, american in _SPELLINGS:
    word = word.replace(british, american)
  return _singular(word)
