"""What is asked of one image, and what an answer has to hold.

Everything that reaches the model is made here, from the image, the class names
and the modality. Descriptions and mask files never take part.

  named          every class of the reference, by name, as many in one question
                 as an answer has masks for, or `classes_per_question`
  open           an open question that names nothing
  negative       one class of the same dataset and modality that the image
                 lacks, alone in its question; and in the same question, alone
                 too, one that it holds: what a model says of the two differs
                 by the image only
  phrases        one class of the image in other words (`phrases.py`), alone in
                 its question, and once by its name; the words change, the
                 question does not
  wrong_name     control: a class that the image lacks, of any modality;
                 whatever comes back is scored against a present class
  noise          control: the named question, over noise instead of the image
  shuffled_text  control: the named question with its words in random order
  wrong_modality control: the named question with the name of another modality

Two names of one task (`registry.py`) are one class: an image that holds the
postcava is not asked for an inferior vena cava as a class that it lacks.

All draws come from (seed, purpose, record id), so that neither the order of
the records nor the batch size changes them.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
from typing import Protocol

import numpy as np

from rcmed_jax.data import prompts
from rcmed_jax.data.records import Sample, Triplet
from rcmed_jax.eval import phrases, task_table
from rcmed_jax.eval.registry import Registry
from rcmed_jax.eval.rows import PLAIN

PROTOCOLS = ("named", "open", "negative", "phrases")
CONTROLS = ("wrong_name", "noise", "shuffled_text", "wrong_modality")
# Kind of the question for a class that is there, beside the negative ones.
PRESENT = "present"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """How a split is evaluated. `limit` and the like: 0 means all records."""

  # Requests that a device answers together; another number may round otherwise.
  rows: int = 8
  batch_size: int = 8  # requests under way at least; changes no number
  # Records scored before their scores are put down. Requests of two chunks are
  # never answered together, so that a stopped evaluation goes on to the bit.
  chunk: int = 64
  max_new: int = 128  # longest answer, in tokens
  limit: int = 0  # records evaluated, drawn by seed
  protocols: tuple[str, ...] = ("named", "open", "negative")
  controls: tuple[str, ...] = CONTROLS
  control_limit: int = 200  # records of controls and phrases, drawn by seed
  # Classes named in one question; 0: all of an image, the release's protocol,
  # but no more than an answer has masks for.
  classes_per_question: int = 0
  absent_per_image: int = 2  # at most this many absent classes asked
  # The decoder's estimate of the IoU from which a target is there, for a model
  # trained to estimate it (train.loss.quality); 0: any mask but an empty one.
  present_quality: float = 0.0
  confident: float = 0.5  # confidence from which a target counts as claimed
  bootstrap: int = 1000  # resamplings behind each 95% interval; 0: none
  gallery: int = 2  # images per modality shown in the report, drawn by seed
  worst: int = 8  # images with the lowest Dice shown in the report
  tasks: str = ""  # file of more tasks, of the form of tasks.csv
  seed: int = 0

  def __post_init__(self) -> None:
    # Records of earlier versions call it so.
    asked = ["negative" if p == "absent" else p for p in self.protocols]
    object.__setattr__(self, "protocols", tuple(asked))
    for field, allowed in (("protocols", PROTOCOLS), ("controls", CONTROLS)):
      for name in getattr(self, field):
        if name not in allowed:
          raise ValueError(
            f"eval.{field}: {name!r} is unknown; choose from {allowed}."
          )
    if "named" not in self.protocols:
      raise ValueError(
        f"eval.protocols={self.protocols} lacks 'named', against which all "
        "else is read; add it."
      )
    for field in ("rows", "batch_size", "chunk"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"eval.{field}={getattr(self, field)} must be at least 1."
        )
    for field, value in dataclasses.asdict(self).items():
      if isinstance(value, int | float) and field != "seed" and not value >= 0:
        raise ValueError(f"eval.{field}={value} must be at least 0.")
    if 0 < self.bootstrap < 100:
      raise ValueError(
        f"eval.bootstrap={self.bootstrap} is too few for a 95% interval; "
        "use 0 for none, or at least 100."
      )


class Found(Protocol):
  """One target of an answer."""

  @property
  def name(self) -> str: ...

  @property
  def present(self) -> bool: ...

  @property
  def mask_IJ(self) -> np.ndarray | None:
    """bool, on the grid of the image that was asked about."""
    ...

  @property
  def confidence(self) -> float:
    """0..1"""
    ...


class Answer(Protocol):
  """What a model returns for one request."""

  @property
  def text(self) -> str: ...

  @property
  def modality(self) -> str | None: ...

  @property
  def targets(self) -> Sequence[Found]: ...


@dataclasses.dataclass(frozen=True)
class Request:
  """What a model receives: nothing else of a record reaches it."""

  image_IJC: np.ndarray  # uint8, RGB
  question: str
  classes: tuple[str, ...] | None  # named in the question; None: open question


@dataclasses.dataclass(frozen=True)
class Ask:
  """A request together with what is needed to score its answer."""

  kind: str  # one of PROTOCOLS or CONTROLS, or PRESENT
  request: Request
  record: Sample
  triplet: Triplet
  # negative, present: the class asked; wrong_name: the one scored
  target: str = ""
  variant: phrases.Variant | None = None  # of the target's name
  modality: str = ""  # wrong_modality: the one in the question


def draw(records: Sequence[Sample], number: int, seed: int) -> set[str]:
  """Returns the ids of `number` records drawn by seed; of all where 0."""
  ids = [record.id for record in records]
  if not 0 < number < len(ids):
    return set(ids)
  return set(sorted(ids, key=lambda id: _digest(seed, "draw", id))[:number])


def asks(
  record: Sample,
  triplet: Triplet,
  config: EvalConfig,
  *,
  siblings: Sequence[str],
  vocabulary: Sequence[str],
  modalities: Sequence[str],
  words: phrases.Phrases,
  registry: Registry,
  controls: bool,
  most: int = 0,
) -> Iterator[Ask]:
  """Yields all that is asked of one image, named first.

  Args:
    siblings: the classes of the record's dataset and modality.
    vocabulary, modalities: the classes and modalities of all records.
    words: other words for classes.
    registry: which names mean the same.
    controls: whether this record takes part in controls and phrases.
    most: masks in one answer, and so classes in one question; 0: any number.
  """
  image_IJC, here = triplet.image_IJC, triplet.classes
  if here:
    random = _random(config, "named", record)
    limit = most or len(here)
    size = min(config.classes_per_question or limit, limit)
    for start in range(0, len(here), size):
      part = here[start : start + size]
      text = _question(part, triplet.modality, random)
      named = Request(image_IJC, text, part)
      yield Ask("named", named, record, triplet)
      if controls and start == 0:
        wrong = _apart(vocabulary, triplet, registry)
        yield from _controls(named, record, triplet, config, wrong, modalities)
  if "open" in config.protocols:
    random = _random(config, "open", record)
    template = int(random.integers(prompts.DESCRIPTION_TEMPLATES))
    text = prompts.description_question(template)
    yield Ask("open", Request(image_IJC, text, None), record, triplet)
  if "negative" in config.protocols:
    missing = _apart(siblings, triplet, registry)
    yield from _negative(record, triplet, config, missing)
  if "phrases" in config.protocols and controls and here:
    yield from _phrases(record, triplet, config, words)


def _negative(
  record: Sample, triplet: Triplet, config: EvalConfig, missing: Sequence[str]
) -> Iterator[Ask]:
  """Yields one question for classes alone: some absent, and one present."""
  random = _random(config, "absent", record)
  template = int(random.integers(prompts.TEMPLATES))
  order = random.permutation(len(missing))[: config.absent_per_image]
  asked = [("negative", missing[int(place)]) for place in order]
  if asked and triplet.classes:
    place = int(random.integers(len(triplet.classes)))
    asked.append((PRESENT, triplet.classes[place]))
  for kind, name in asked:
    text = prompts.question((name,), triplet.modality, template)
    request = Request(triplet.image_IJC, text, (name,))
    yield Ask(kind, request, record, triplet, name)


def _phrases(
  record: Sample,
  triplet: Triplet,
  config: EvalConfig,
  words: phrases.Phrases,
) -> Iterator[Ask]:
  """Yields one question in several words, the class's own first."""
  random = _random(config, "phrases", record)
  name = triplet.classes[int(random.integers(len(triplet.classes)))]
  text = _question((name,), triplet.modality, random)
  for variant in (
    phrases.Variant(PLAIN, name.lower()),
    *words.variants(triplet.modality, name, record.id),
  ):
    request = Request(
      triplet.image_IJC,
      phrases.reworded(text, name, variant.text),
      (name,),
    )
    yield Ask("phrases", request, record, triplet, name, variant)


def _controls(
  named: Request,
  record: Sample,
  triplet: Triplet,
  config: EvalConfig,
  wrong: Sequence[str],
  modalities: Sequence[str],
) -> Iterator[Ask]:
  """Yields the controls of an image, each a change to its first question."""
  if "wrong_name" in config.controls and wrong:
    random = _random(config, "wrong_name", record)
    target = triplet.classes[int(random.integers(len(triplet.classes)))]
    name = wrong[int(random.integers(len(wrong)))]
    text = _question((name,), triplet.modality, random)
    request = Request(named.image_IJC, text, (name,))
    yield Ask("wrong_name", request, record, triplet, target)
  if "noise" in config.controls:
    random = _random(config, "noise", record)
    noise_IJC = random.integers(0, 256, named.image_IJC.shape, np.uint8)
    request = dataclasses.replace(named, image_IJC=noise_IJC)
    yield Ask("noise", request, record, triplet)
  if "shuffled_text" in config.controls:
    random = _random(config, "shuffled_text", record)
    text = " ".join(random.permutation(named.question.split()).tolist())
    request = dataclasses.replace(named, question=text)
    yield Ask("shuffled_text", request, record, triplet)
  head, own, tail = named.question.rpartition(f"{triplet.modality} image")
  if "wrong_modality" in config.controls and triplet.modality and own:
    random = _random(config, "wrong_modality", record)
    others = _other_modalities(triplet.modality, modalities)
    other = others[int(random.integers(len(others)))]
    text = f"{head}{other} image{tail}"
    request = dataclasses.replace(named, question=text)
    yield Ask("wrong_modality", request, record, triplet, modality=other)


def _apart(
  names: Sequence[str], triplet: Triplet, registry: Registry
) -> list[str]:
  """Returns the names that mean no class of the image, one a task."""
  met = {registry.task(triplet.modality, name).task for name in triplet.classes}
  found = []
  for name in names:
    task = registry.task(triplet.modality, name).task
    if task not in met:
      met.add(task)
      found.append(name)
  return found


def _other_modalities(own: str, modalities: Sequence[str]) -> list[str]:
  """Returns those of the records, or all known ones where they have but one."""
  own = task_table.modality_name(own)
  for names in (modalities, task_table.MODALITY_NAMES):
    others = [name for name in names if task_table.modality_name(name) != own]
    if others:
      break
  return others


def _question(
  classes: Sequence[str], modality: str, random: np.random.Generator
) -> str:
  template = int(random.integers(prompts.TEMPLATES))
  return prompts.question(classes, modality, template)


def _random(
  config: EvalConfig, purpose: str, record: Sample
) -> np.random.Generator:
  return np.random.default_rng(_digest(config.seed, purpose, record.id))


def _digest(seed: int, purpose: str, id: str) -> int:
  text = f"{seed}\n{purpose}\n{id}"
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
