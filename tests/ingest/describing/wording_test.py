import pytest

from rcmed_jax.data import tokens
from rcmed_jax.ingest.describing import wording

COLOURS = {"red": "liver", "blue": "lungs"}
GOOD = "The liver is oval with a sharp edge. The lungs are dark and large."


def faults(text, present=("liver", "lungs"), absent=("spleen",), **more):
  return wording.faults(text, text, COLOURS, present, absent, **more)


def test_prompt_names_colours_and_numbers_but_no_class():
  prompt = wording.prompt(COLOURS, detail=False)
  assert '"the red region"' in prompt and '"the blue regions"' in prompt
  assert "liver" not in prompt and "lung" not in prompt
  for word in ("shape", "neighbours", "texture", "boundary", "diagnosis"):
    assert word in prompt
  assert "2 targets" in prompt
  assert "two or three sentences" in wording.prompt(COLOURS, detail=True)
  assert "One target" in wording.prompt({"red": "liver"}, detail=False)


def test_a_good_description_has_no_faults():
  assert faults(GOOD) == ""


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (GOOD.replace("dark", "reddish"), '"reddish"'),
    (GOOD.replace("dark", "whitish"), '"whitish"'),
    (GOOD.replace("dark", "grey"), '"grey"'),
    (GOOD.replace("dark", "Purple"), '"purple"'),
    (GOOD.replace("dark", "discoloured"), '"discoloured"'),
    (GOOD.replace("dark", "highlighted"), '"highlighted"'),
    (
      "The liver is oval with a sharp edge all around it.",
      "blue region is not",
    ),
    (GOOD + " The spleen is small.", 'names "spleen"'),
    (GOOD + " Spleens are small.", 'names "Spleens"'),
    (GOOD + " <p> is here.", "holds <p>"),
    (GOOD + " [seg] is here.", "holds [SEG]"),
    ("I'm sorry, the liver and lungs are not for me.", "I'm sorry"),
    ("I cannot see the liver or the lungs in here.", "I cannot"),
    ("Liver. Lungs.", "too short"),
    (GOOD * 12, "too long"),
    ("", "too short"),
  ],
)
def test_faults_are_said(text, words):
  assert words in faults(text)


@pytest.mark.parametrize("marker", tokens.MARKERS)
def test_no_marker_passes(marker):
  assert marker in faults(f"{GOOD} {marker}")


def test_longer_names_go_before_the_shorter_in_them():
  text = "The liver tumor is oval with a sharp edge. The lungs are dark."
  told = wording.faults(
    text, text, {"red": "liver tumor"}, ["liver tumor", "lungs"], ["liver"]
  )
  assert told == ""
  # The whole is not told by its part.
  told = wording.faults(text, text, {"red": "liver"}, ["liver", "lungs"], [])
  assert told == ""
  told = faults(text, absent=["liver tumor"])
  assert 'names "liver tumor"' in told and "red region is not" in told


@pytest.mark.parametrize(
  ("absent", "said"),
  [
    ("left kidney", "left kidneys"),
    ("gallbladder", "gall bladder"),
    ("brain tumor", "brain-tumour"),
    ("metastasis", "metastases"),
    ("nucleus", "nuclei"),
    ("optic_disc", "optic disc"),
    ("cavity", "cavities"),
    ("cells", "cell"),
  ],
)
def test_absent_classes_are_known_in_other_forms(absent, said):
  assert f'names "{said}"' in faults(
    f"{GOOD} A {said} is near.", absent=[absent]
  )


def test_parts_of_words_are_no_classes():
  assert (
    faults(GOOD + " It is livery, splenetic.", absent=["live", "spl"]) == ""
  )


def test_odd_class_names_harm_nothing():
  odd = ["-", "(x", "a+b", "tumor (core)", "[", "  "]
  assert faults(GOOD, absent=odd) == ""
  assert "not a target" in faults(GOOD + " A tumor (core).", absent=odd)


def test_the_model_is_told_no_class_that_it_did_not_say():
  reply = (
    "The red region is oval. The red region tumor is near the blue regions."
  )
  text = "The liver is oval. The liver tumor is near the lungs."
  told = wording.faults(text, reply, COLOURS, COLOURS.values(), ["liver tumor"])
  assert "liver" not in told and "lungs" not in told
  assert "not a target" in told


@pytest.mark.parametrize(
  ("reply", "expected"),
  [
    ("**The red region**:\n\n- is _oval_", "The red region: is oval"),
    ("# Findings\n1. The `red` region", "Findings The red region"),
    ("<think>red?\nblue?</think>\nThe red region", "The red region"),
    ("The \u201cred region\u201d", "The red region"),
    ("r\u200bed region\x00", "red region"),
    ("the \uff52\uff45\uff44 region\u2019s", "the red region's"),
    ("a well-defined\u00a0edge", "a well-defined edge"),
  ],
)
def test_plain_text(reply, expected):
  assert wording.plain(reply) == expected
