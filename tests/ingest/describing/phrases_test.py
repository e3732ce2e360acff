import re
import time

from hypothesis import given
from hypothesis import strategies as st
import pytest

from rcmed_jax.ingest.describing import phrases, wording

COLOURS = {
  "red": "liver",
  "green": "lungs",
  "blue": "COVID lesion",
  "orange": "aorta",
}


@pytest.mark.parametrize(
  ("said", "expected"),
  [
    ("The red region is oval.", "The liver is oval."),
    ("Seen is the RED Area.", "Seen is the liver."),
    ("An orange area is left of it.", "The aorta is left of it."),
    ("the red-shaded mass", "the liver"),
    ("the red coloured lesion", "the liver"),
    ("the large, oval red region", "the large, oval liver"),
    ("a kidney-shaped red structure", "the kidney-shaped liver"),
    ("The bright red region", "The liver"),
    ("Red region: round.", "The liver: round."),
    (
      "between red region and blue mass",
      "between the liver and the COVID lesion",
    ),
    ("the surrounding red region", "the surrounding liver"),
    # Of colours behind nouns.
    ("The region in red is round.", "The liver is round."),
    ("the area that is marked in blue", "the COVID lesion"),
    ("an oval structure outlined in orange", "the oval aorta"),
    ("an area of red", "the liver"),
    # Possessives.
    ("the red region's edge", "the liver's edge"),
    ("The green regions' edges", "The lungs' edges"),
    # Number: the sentence's verb stays right.
    ("The green regions are round.", "The lungs are round."),
    ("The red regions are thin.", "The parts of the liver are thin."),
    ("The green region is large.", "The region of the lungs is large."),
    ("Two red regions lie low.", "Two parts of the liver lie low."),
    ("Two green regions lie low.", "Two lungs lie low."),
    ("each red region", "each liver"),
    ("One of the red regions", "One of the parts of the liver"),
    # Several in one phrase.
    ("The red and blue regions", "The liver and the COVID lesion"),
    (
      "the red, the green and the orange regions",
      "the liver, the lungs and the aorta",
    ),
    ("Both the red and the blue region", "Both the liver and the COVID lesion"),
    # Without a noun.
    (
      "The red is larger than the blue.",
      "The liver is larger than the COVID lesion.",
    ),
  ],
)
def test_phrases_give_way_to_names(said, expected):
  assert phrases.named(said, COLOURS) == expected


@pytest.mark.parametrize(
  "said",
  [
    "reddish tissue",
    "red blood cells",
    "The tissue is red.",
    "peau d'orange",
    "an infra-red region",
    "a red-brown region",
    "the dark red region",
    "the light blue region",
    "There is no red region.",
    "the yellow region",
    "touching red region",
    "the region shown in red and green",
    "the two red and blue regions",
  ],
)
def test_what_may_mean_something_else_stays(said):
  assert phrases.named(said, COLOURS) == said


def test_a_name_with_a_colour_in_it_is_not_replaced_again():
  colours = {"red": "red blood cell", "blue": "blue nevus"}
  text = phrases.named("The red region lies in the blue region.", colours)
  assert text == "The red blood cell lies in the blue nevus."


NAMES = st.sampled_from(
  ["liver", "lungs", "left kidney", "aorta", "nuclei", "T1 lesion", "pancreas"]
)
DETERMINERS = ["the", "a", "an", "this", "two", "several", "each", "these", ""]
NOUNS = ["region", "area", "mass", "regions", "areas", "structures", "patches"]


@st.composite
def sentences(draw):
  """(text, colours used) of sentences that a model might write."""
  names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
  palette = draw(st.permutations(["red", "green", "blue", "yellow"]))
  colours = dict(zip(palette, names, strict=False))
  parts = []
  for colour in colours:
    determiner = draw(st.sampled_from(DETERMINERS))
    adjective = draw(st.sampled_from(["", "large ", "oval ", "well-defined "]))
    mark = draw(st.sampled_from(["", "-shaded", " coloured", "-outlined"]))
    noun = draw(st.sampled_from(NOUNS))
    form = draw(st.sampled_from(["before", "behind", "clause"]))
    start = f"{determiner} {adjective}".lstrip()
    phrase = {
      "before": f"{start}{colour}{mark} {noun}",
      "behind": f"{start}{noun} in {colour}",
      "clause": f"{start}{noun} that is marked in {colour}",
    }[form]
    phrase = phrase[0].upper() + phrase[1:]
    verb = draw(st.sampled_from(["is round", "lies low", "have sharp edges"]))
    parts.append(f"{phrase} {verb}.")
  return " ".join(parts), colours


@given(sentences())
def test_no_colour_stays_and_every_name_comes(case):
  said, colours = case
  text = phrases.named(said, colours)
  assert not re.search(r"\b(?:red|green|blue|yellow)\b", text, re.IGNORECASE)
  for name in colours.values():
    assert name in text
  # What is said of the targets stays, word for word.
  for verb in ("is round.", "lies low.", "have sharp edges."):
    assert text.count(verb) == said.count(verb)
  assert not re.search(r"\b(?:the|a|an) (?:the|a|an)\b", text, re.IGNORECASE)
  assert not re.search(r"  | [.,]", text)
  for sentence in re.split(r"(?<=\.) ", text):
    assert sentence[0].isupper()
    assert re.match(r"(?:The|Two|Several|Each|[A-Z])", sentence)


@pytest.mark.parametrize(
  "words",
  [
    "typical ",
    "red, ",
    "red and ",
    "region in ",
    "large, ",
    "the ",
    "a-",
    "\n",
  ],
)
def test_no_text_takes_long(words):
  """20,000 characters, the most that a reply has; a second is ample."""
  text = words * (20_000 // len(words)) + "red"
  since_s = time.process_time()
  phrases.named(wording.plain(text), COLOURS)
  assert time.process_time() - since_s < 1


@given(st.text(alphabet="therdgnblu ',.-s", max_size=60))
def test_any_text_is_taken(text):
  once = phrases.named(text, COLOURS)
  assert phrases.named(once, {"magenta": "x"}) == once
