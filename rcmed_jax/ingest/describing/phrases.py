"""Class names in the place of phrases that name a colour.

  "A red region lies left of the blue regions."
  -> "The liver lies left of the lungs."

A phrase of no known form stays as it is: no guess is made, and whoever checks
the text then finds a colour in it.
"""

from collections.abc import Mapping, Sequence
import functools
import re

from rcmed_jax.data import describe

# The nouns that answers use of a target.
_SINGULAR = (
  "region|area|mass|lesion|structure|zone|part|patch|spot|mark|shape|segment"
  "|section|contour|outline|object|target|organ|blob|portion|component|one"
)
_NOUN = rf"(?:{_SINGULAR})"
_NOUNS = rf"(?:(?:{_SINGULAR}|masse|patche)s)"
_PARTICIPLE = (
  "(?:colou?red|shaded|tinted|filled|outlined|marked|painted|labell?ed|shown"
  "|highlighted|overlaid|delineated)"
)
# Words of number; they stay before the name.
_COUNTS = r"\d+|two|three|four|five|several|multiple|many|all|both|some|few"
_EACH = "each|every|one|another|either"
# Articles and what else gives way to "the".
_GONE = "a|an|the|this|that|these|those|its"
# Adjectives that may stand between article and colour, or before a colour at
# the start of a sentence.
_ADJECTIVE = (
  "(?:large[rst]*|small(?:er|est)?|big|tiny|round(?:ed)?|oval|irregular"
  "|elongated|upper|lower|left|right|central|middle|outer|inner|dense|thin"
  "|thick|long|narrow|wide|broad|other|second|first|smooth|lobulated|(?:well|ill)"
  "-defined|homogeneous|heterogeneous|single|paired|"
  rf"{_COUNTS}|[a-z-]+(?:shaped|like|ular|oid|ous|al|ic))"
)
# In one phrase, of adjectives and of colours in a list: more are no sentence,
# and trying them would take long.
_MOST = 5
# Of the paint, not of the tissue.
_VIVID = r"(?:(?:bright|vivid|solid|translucent|transparent)\s+)?"
# Before a colour they make another one.
_SHADE = "light|dark|pale|deep|sky"
# What may follow "the red" where no noun does.
_AFTER = (
  r"(?=\s*(?:[.,;:!?)]|$)|\s+(?:is|are|was|were|has|have|and|or|but|lies?|sits?"
  r"|appears?|shows?|in|on|at|to|by|with|from|while|which|than)\b)"
)
# Words before a phrase that has no article and needs one.
_OPEN = (
  "of|in|to|with|from|by|than|and|or|between|near|below|above|behind|around"
  "|inside|within|under|over|beside|at|as|contains|touches|surrounds|abuts"
  "|borders|overlaps|covers|encloses|reaches|shows|is"
)
# The target is said to be missing, or to have another colour.
_REFUSED = rf"no|not|any|without|{_SHADE}"


def named(text: str, colours: Mapping[str, str]) -> str:
  """The text with class names for coloured regions.

  Where the phrase's number is not the name's, "parts of the liver" or "region
  of the lungs" keeps the sentence's verb right.

  Args:
    text: one line.
    colours: colour -> class.
  """
  names = {colour.lower(): name for colour, name in colours.items()}
  pattern = _phrase(tuple(names))

  def instead(match: re.Match[str]) -> str:
    return _instead(match, names)

  return pattern.sub(instead, text)


def is_plural(name: str) -> bool:
  """Whether a class is spoken of as several."""
  return describe.verb(name) == "are"


@functools.lru_cache(maxsize=64)
def _phrase(colours: tuple[str, ...]) -> re.Pattern[str]:
  """Finds "a large red region", "regions marked in red", "the red" and more."""
  one = rf"(?:{'|'.join(colours)})"
  several = (
    rf"{one}(?:\s*,\s*(?:the\s+)?{one}){{0,{_MOST}}},?\s+and\s+(?:the\s+)?{one}"
  )
  some = rf"(?:{several}|{one})"
  of_the = r"(?:(?:all|both|each|one|some|most|two)\s+(?:of\s+)?(?=the\b))?"
  determiner = rf"(?:{_GONE}|{_EACH}|{_COUNTS})"
  return re.compile(
    rf"(?<![\w-])(?P<lead>{of_the})(?P<determiner>\b{determiner}\s+)?"
    rf"(?P<adjectives>(?:{_ADJECTIVE},?\s+){{0,{_MOST}}})"
    rf"(?:{_VIVID}(?P<before>{some})(?:[- ]{_PARTICIPLE})?\s+"
    rf"(?:{_NOUN}|(?P<nouns>{_NOUNS}))(?P<own>'s|')?"
    rf"|(?:{_NOUN}|(?P<other_nouns>{_NOUNS}))"
    rf"(?:\s+(?:that|which)\s+(?:is|are))?(?:\s+{_PARTICIPLE})?\s+(?:in|of)\s+"
    rf"{_VIVID}(?P<behind>{some})"
    rf"|(?<=\bthe\s)(?P<bare>{one}){_AFTER})(?![\w-])",
    re.IGNORECASE,
  )


def _instead(match: re.Match[str], names: Mapping[str, str]) -> str:
  """The words for one phrase, or the phrase itself."""
  coloured = match["before"] or match["behind"] or match["bare"]
  found = re.findall("|".join(names), coloured.lower())
  determiner = (match["determiner"] or "").strip().lower()
  counted = determiner if not re.fullmatch(_GONE, determiner) else ""
  before = match.string[: match.start()]
  article = "the " if determiner else _article(before)
  if article is None:
    return match.group()
  many = bool(match["nouns"] or match["other_nouns"])
  adjectives = match["adjectives"]
  if len(found) == 1:
    name = names[found[0]]
    # A count alone does not tell: "one red region", "two red regions".
    if many != is_plural(name):
      name = f"{'parts' if many else 'region'} of the {name}"
    head = f"{counted} " if counted else article
    words = f"{match['lead']}{head}{adjectives}{name}"
  else:
    both = f"{match['lead']}{counted}".strip().lower()
    unclear = both not in ("", "both") or re.search(
      rf"\b(?:{_COUNTS})\b", adjectives, re.IGNORECASE
    )
    if unclear or (match["behind"] and not many):
      return match.group()
    parts = [f"the {adjectives}{names[colour]}" for colour in found]
    words = f"{both} {_listed(parts)}".strip()
  if match["own"]:
    words += "'" if many and words.endswith("s") else "'s"
  starts = not before.strip() or before.rstrip()[-1] in ".!?:"
  if starts and match.group()[0].isupper():
    return words[0].upper() + words[1:]
  return words


def _article(before: str) -> str | None:
  """What a phrase without determiner needs; None: it cannot be told.

  Args:
    before: the text up to the phrase.
  """
  words = before.lower().split()
  last = words[-1] if words else "."
  in_list = last.endswith(",") and len(words) > 1
  if re.fullmatch(_REFUSED, last) or (
    in_list and re.fullmatch(_GONE, words[-2])
  ):
    return None
  if last[-1] in ".,;:!?()" or re.fullmatch(_OPEN, last):
    return "the "
  # An adjective that is not known: "the neighbouring".
  is_told = len(words) > 1 and re.fullmatch(_GONE, words[-2])
  return "" if is_told else None


def _listed(parts: Sequence[str]) -> str:
  *head, last = parts
  return f"{', '.join(head)} and {last}" if head else last
