"""What is said: questions, the conversation around them, answers.

Training draws one of three forms for each image: all targets with a
description, all targets by name, or a subset by name. Beyond the release, a
question may also name classes that the image lacks; the answer then says so.
Source: the released templates' form (LLaVA v1); the questions are our own.
"""

from collections.abc import Sequence
import dataclasses
import re

import numpy as np

CLASS_QUESTIONS = (
  "Can you segment the {classes} in this {modality} image?",
  "Please segment the {classes} in this {modality} image.",
  "Where is the {classes} in this {modality} image?",
  "Show me the {classes} in this {modality} image.",
  "Find the {classes} in this {modality} image.",
  "Please outline the {classes} in the {modality} image.",
  "Which part of this {modality} image is the {classes}?",
)
DESCRIPTION_QUESTIONS = (
  "Can you describe this image in detail, with interleaved masks?",
  "Please describe the image in detail and interleave masks.",
  "What does this image show? Answer in detail with interleaved masks.",
  "Give a detailed description of the image with interleaved masks.",
  "Explain what you see in detail, with masks between the words.",
  "Describe all that is in the image in detail, masks interleaved.",
)
TEMPLATES = len(CLASS_QUESTIONS)
DESCRIPTION_TEMPLATES = len(DESCRIPTION_QUESTIONS)

_SYSTEM = (
  "A chat between a curious human and an artificial intelligence assistant. "
  "The assistant gives helpful, detailed, and polite answers to the human's "
  "questions."
)
_CONTAINS = "The image contains"
_LEAD = "The <im_start><image><im_end> provides an overview of the picture.\n"

# A phrase holds no marker: one that is never closed must not swallow the next.
_PHRASE = r"<p>\s*((?:(?!</?p>|\[SEG\]).)*?)\s*</p>"
_ANSWER_PARTS = re.compile(
  rf"(?P<absent>\bno\s+{_PHRASE})|{_PHRASE}(?P<seg>\s*\[SEG\])?"
)
# The sentences before a description; a phrase may hold a full stop.
_FIXED = re.compile(
  rf"^\s*This is a {_PHRASE} image\."
  rf"(?:\s*{_CONTAINS} (?:(?:no )?{_PHRASE}(?:\s*\[SEG\])?(?:, | and )?)+\.)*"
)
_MARKS = re.compile(r"</?p>|\[SEG\]")


@dataclasses.dataclass(frozen=True)
class Asked:
  """One drawn prompt: the question and what its answer holds."""

  question: str
  describe: bool  # the description form
  present: tuple[str, ...]  # in the order of their [SEG]
  absent: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ParsedAnswer:
  """What an answer's text claims."""

  modality: str | None
  present: tuple[str, ...]  # one name per [SEG], in order; "" where unnamed
  absent: tuple[str, ...]


def question(
  classes: Sequence[str], modality: str | None, template: int
) -> str:
  """A question that names classes (lower case) and the modality, if known."""
  names = ", ".join(name.lower() for name in classes)
  form = CLASS_QUESTIONS[template]
  if not modality:
    form = form.replace("{modality} ", "")
  return form.format(classes=names, modality=modality)


def description_question(template: int) -> str:
  """A question that asks for a description and names nothing."""
  return DESCRIPTION_QUESTIONS[template]


def conversation(
  question: str,
  *,
  describe: bool = False,
  earlier: Sequence[tuple[str, str]] = (),
) -> str:
  """The whole prompt up to and including "ASSISTANT:".

  The class form has two spaces before ASSISTANT, the description form one.
  Turns before it follow each other as in the release's template, which joins
  them although its training has one alone:

    ... USER: The <im_start>...picture.\\nWhere is the liver?  ASSISTANT:
    This is ... [SEG].</s>USER: And the spleen?  ASSISTANT:

  Args:
    earlier: questions and their answers, in the class form.

  Raises:
    ValueError: a question, or an answer before it, has no text.
  """
  said = ""
  for asked, answer in earlier:
    answer = answer.removesuffix("</s>").strip()
    if not answer:
      raise ValueError(
        f"the answer to {asked!r}, earlier in the conversation, has no text; "
        "leave that turn out."
      )
    said += f"{_asked(asked)}  ASSISTANT: {answer}</s>USER: "
  space = " " if describe else "  "
  turns = f"{said}{_asked(question)}{space}ASSISTANT:"
  return f"{_SYSTEM} USER: {_LEAD}{turns}"


def _asked(question: str) -> str:
  if not question.strip():
    raise ValueError(
      "the prompt has no text; write what to look for, for example "
      '"Can you segment the liver in this image?".'
    )
  return question.strip()


def opening(modality: str) -> str:
  """The words before the first class of an answer, present or claimed."""
  return f"{_modality_sentence(modality)} {_CONTAINS}"


def answer(
  modality: str,
  present: Sequence[str],
  absent: Sequence[str] = (),
  description: str | None = None,
) -> str:
  """The answer with its markers and `</s>`.

  Each sentence only where it has something to say:
  "This is a <p> X-Ray </p> image. The image contains <p> heart </p> [SEG] and
  <p> left lung </p> [SEG]. The image contains no <p> nodule </p>.</s>"
  """
  sentences = [_modality_sentence(modality)]
  if present:
    phrases = _join([f"<p> {name} </p> [SEG]" for name in present])
    sentences.append(f"{_CONTAINS} {phrases}.")
  if absent:
    phrases = _join([f"no <p> {name} </p>" for name in absent])
    sentences.append(f"{_CONTAINS} {phrases}.")
  if description:
    sentences.append(description)
  return " ".join(sentences) + "</s>"


def description_in(text: str) -> str:
  """What an answer says after its fixed sentences, without markers."""
  rest = _FIXED.sub("", text.removesuffix("</s>"))
  return " ".join(_MARKS.sub(" ", rest).split())


def parse_answer(text: str) -> ParsedAnswer:
  """What an answer claims; text that is badly formed claims less.

  A phrase followed by [SEG] is a target, one after "no" is absent, and the
  first that is neither is the modality.
  """
  modality, present, absent = None, [], []
  end = 0
  for part in _ANSWER_PARTS.finditer(text):
    present += [""] * text.count("[SEG]", end, part.start())
    end = part.end()
    if part["absent"]:
      absent.append(part.group(2))
    elif part["seg"]:
      present.append(part.group(3))
    elif modality is None:
      modality = part.group(3)
  present += [""] * text.count("[SEG]", end)
  return ParsedAnswer(modality, tuple(present), tuple(absent))


def draw(
  rng: np.random.Generator,
  classes: Sequence[str],
  siblings: Sequence[str],
  modality: str,
  *,
  weights: Sequence[float],
  described: bool,
  most: int,
  negative_share: float = 0.0,
  single_share: float = 0.0,
  only_absent: bool = False,
  shuffle: bool = False,
) -> Asked:
  """A prompt for one image.

  Args:
    classes: present, in the order of the index.
    siblings: classes that may be asked as absent.
    weights: of the three forms: described, all by name, a subset by name.
    described: whether the image has a description.
    most: present classes in one answer, and absent ones. Of an image with more
      some are drawn anew each time, and it is not described: an open question
      is answered with all that is there.
    negative_share: share of the questions by name that ask absent classes,
      half of them nothing else.
    single_share: share of the questions by name that ask one class alone.
    only_absent: ask absent classes only (the image shows none of its own).
    shuffle: ask in random order instead of the index's.
  """
  form = int(rng.choice(3, p=np.asarray(weights) / np.sum(weights)))
  nothing = not classes and not siblings  # no name to ask by
  describable = described and 0 < len(classes) <= most and not only_absent
  if nothing or (form == 0 and describable):
    template = int(rng.integers(DESCRIPTION_TEMPLATES))
    return Asked(description_question(template), True, tuple(classes), ())
  single = rng.random() < single_share
  most = 1 if single else most
  present = list(classes)
  if form == 2 and present:
    present = _subset(rng, present, int(rng.integers(1, len(present) + 1)))
  if len(present) > most:
    present = _subset(rng, present, most)
  absent: list[str] = []
  negative = rng.random() < negative_share
  alone = only_absent or not present
  alone |= negative and (single or rng.random() < 0.5)
  if siblings and (negative or alone):
    count = int(rng.integers(1, min(most, len(siblings)) + 1))
    absent = _subset(rng, siblings, count)
    present = [] if alone else present
  asked = present + absent
  if shuffle:
    asked = [asked[index] for index in rng.permutation(len(asked))]
  template = int(rng.integers(TEMPLATES))
  return Asked(
    question(asked, modality, template),
    False,
    tuple(name for name in asked if name in present),
    tuple(name for name in asked if name in absent),
  )


def _modality_sentence(modality: str) -> str:
  return f"This is a <p> {modality} </p> image."


def _subset(
  rng: np.random.Generator, names: Sequence[str], count: int
) -> list[str]:
  """`count` of the names, in their order."""
  kept = sorted(rng.choice(len(names), count, replace=False))
  return [names[int(index)] for index in kept]


def _join(phrases: Sequence[str]) -> str:
  """The phrases as "A", "A and B" or "A, B and C"."""
  *head, last = phrases
  return f"{', '.join(head)} and {last}" if head else last
