"""What a model is asked about coloured regions, and whether its answer will do.

What is wrong with an answer is said in words that the model can be told: they
hold no class that the answer does not name itself.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
import re
import unicodedata

from rcmed_jax.data import tokens
from rcmed_jax.ingest.describing import phrases

# Words for each target: one sentence, or two or three.
WORDS, DETAIL_WORDS = 30, 60
# An answer may have so many times the words that were asked for, and so few.
LONGEST, SHORTEST = 2.0, 0.15

# Colours, of the picture and others, with "-ish" and the like. "Bright" and
# "dark" are none. "Colo(u)r" and what follows it speak of the paint.
COLOUR_WORDS = (
  *("red", "green", "blue", "yellow", "orange", "purple", "magenta", "cyan"),
  *("pink", "brown", "black", "white", "gray", "grey", "violet", "turquoise"),
  *("teal", "lime", "maroon", "crimson", "scarlet", "navy", "indigo", "beige"),
  *("amber", "aqua", "fuchsia", "ochre", "mauve", "golden", "silvery"),
  *("redd", "whit", "bluish", "purpl", "orang"),
)
_COLOUR = re.compile(
  rf"\b(?:{'|'.join(COLOUR_WORDS)})(?:s|ish|ness|y|ed)?\b"
  r"|\b(?:multi|dis|un)?colou?r(?!ect)\w*",
  re.IGNORECASE,
)
# The picture's paint, which the image itself lacks.
_PAINT = re.compile(
  r"\b(?:overla(?:y|ys|id)|highlighted|annotat\w+|paint\w*|masks?)\b",
  re.IGNORECASE,
)
_REFUSAL = re.compile(
  r"\b(?:i(?:'m| am) (?:very )?sorry|as an ai|(?:i|we) (?:cannot|can't|can not"
  r"|am unable|'m unable)|i(?:'m| am) (?:not able|unable)|unable to (?:assist"
  r"|help|provide|view|see)|consult (?:a|your) (?:doctor|physician))\b",
  re.IGNORECASE,
)

# Ends of one number -> ends of the other.
_ENDINGS = (
  *(("s", ""), ("es", ""), ("ies", "y"), ("y", "ies"), ("is", "es")),
  *(("es", "is"), ("us", "i"), ("i", "us"), ("um", "a"), ("a", "ae")),
)
# Of one word.
_SPELLINGS = {"gallbladder": r"gall[\s_-]?bladder", "tumor": "tumou?r"}


def prompt(colours: Mapping[str, str], detail: bool) -> str:
  """The question about a picture.

  Args:
    colours: colour -> class. Of the class no more is told than its number.
    detail: ask for more than one sentence a region.
  """
  marks = [_mark(colour, name) for colour, name in colours.items()]
  many = f"{len(marks)} targets are" if len(marks) > 1 else "One target is"
  length = (
    f"two or three sentences, at most {DETAIL_WORDS} words"
    if detail
    else f"one sentence, at most {WORDS} words"
  )
  return (
    f"This is a medical image. {many} painted over: {'; '.join(marks)}. The "
    "paint is a clear fill with an outline of the same colour; a target may "
    "consist of several pieces.\n"
    f"For each target write {length}: its shape, its place in the image and "
    "relative to its neighbours, its texture and its boundary.\n"
    "Rules:\n"
    f"- Call a target by exactly these words, {marks[0]}, with its own colour, "
    "and name every target.\n"
    "- Use colour words to name targets and for nothing else: the colours are "
    "paint. Of the tissue under it say bright, dark or like its "
    "surroundings.\n"
    "- Say what can be seen. Do not guess what a target is, name no other "
    "organ or disease, and give no diagnosis.\n"
    "- Left and right are those of the picture.\n"
    "- Plain sentences: no list, no heading, nothing before or after."
  )


def plain(reply: str) -> str:
  """The reply as one line of bare text.

  What a model says to itself first, marks of layout and quotes, and characters
  that nobody sees go.
  """
  text = re.sub(r"\A\s*<think>.*?</think>", "", reply, flags=re.DOTALL)
  text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
  text = re.sub(r"^[ \t]*(?:[-•#>]+|\d+[.)])\s+", " ", text, flags=re.MULTILINE)
  text = re.sub(r'[*`"\u201c\u201d]|\b_+|_+\b', "", text)
  seen = (
    " " if mark.isspace() else mark
    for mark in text
    if mark.isspace() or unicodedata.category(mark)[0] != "C"
  )
  return " ".join("".join(seen).split())


def faults(
  text: str,
  reply: str,
  colours: Mapping[str, str],
  present: Iterable[str],
  absent: Iterable[str],
  *,
  detail: bool = False,
) -> str:
  """What is wrong with a description, in words for the model; "": nothing.

  Args:
    text: as `phrases.named` gives it.
    reply: as `plain` gives it, before names came in.
    colours: colour -> class, of the targets it must name.
    present: all classes in the image.
    absent: classes that the data set knows and the image lacks.
    detail: whether more than one sentence a region was asked for.
  """
  low = text.lower()
  found = [marker for marker in tokens.MARKERS if marker.lower() in low]
  wrong = [f"it holds {' '.join(found)}"] if found else []
  if refusal := _REFUSAL.search(text):
    wrong.append(f'it says "{refusal.group()}" instead of describing')
  ours = {*present, *colours.values()}
  order = sorted(ours | {*absent}, key=lambda name: (-len(name), name))
  said: set[str] = set()

  def blank(match: re.Match[str]) -> str:
    name = order[int((match.lastgroup or "")[1:])]
    said.add(name)
    if name not in ours:
      # Half of it may be a name that was put in: the model is not told that.
      what = f'"{match.group()}"' if match.group() in reply else "something"
      wrong.append(f"it names {what}, which is not a target")
    return " "

  rest = _any_of(tuple(order)).sub(blank, text) if order else text
  wrong += [
    f"the {colour} region is not described"
    for colour, name in colours.items()
    if name not in said
  ]
  words = sorted({m.group().lower() for m in _COLOUR.finditer(rest)})
  words += sorted({m.group().lower() for m in _PAINT.finditer(rest)})
  if words:
    quoted = ", ".join(f'"{word}"' for word in words)
    wrong.append(
      f"it uses {quoted} otherwise than in the words for a target that were "
      "given"
    )
  return "; ".join(
    dict.fromkeys([*wrong, *_length(text, len(colours), detail)])
  )


def _length(text: str, targets: int, detail: bool) -> Sequence[str]:
  asked = targets * (DETAIL_WORDS if detail else WORDS)
  count = len(text.split())
  if SHORTEST * asked <= count <= LONGEST * asked:
    return ()
  kind = "short" if count < asked else "long"
  return (f"it is too {kind} with {count} words, expected up to {asked}",)


def _mark(colour: str, name: str) -> str:
  return f'"the {colour} {"regions" if phrases.is_plural(name) else "region"}"'


@functools.lru_cache(maxsize=64)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
  """Finds the names; group n<i> is the i-th, an earlier one has precedence."""
  forms = (f"(?P<n{i}>{_forms(name)})" for i, name in enumerate(names))
  return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)", re.IGNORECASE)


def _forms(name: str) -> str:
  """A pattern of the name in either number, however its words are joined."""
  *head, last = re.findall(r"[^\W_]+|[^\w\s-]+", name.lower()) or [name]
  forms = {last, f"{last}s", f"{last}es"}
  for end, other in _ENDINGS:
    if last.endswith(end) and len(last) > len(end) + 2:
      forms.add(last[: -len(end)] + other)
  longest_first = sorted(forms, key=lambda form: (-len(form), form))
  words = [re.escape(word) for word in head]
  words.append(f"(?:{'|'.join(map(re.escape, longest_first))})")
  pattern = r"[\s_-]*".join(words)
  for word, other in _SPELLINGS.items():
    pattern = pattern.replace(word, other)
  return pattern
