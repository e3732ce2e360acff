"""A small world for evaluation: index, pictures, and a model that knows it."""

from collections.abc import Iterable, Iterator
import dataclasses
import itertools
import json
import pathlib

import cv2
import numpy as np
import pytest

from rcmed_jax.data import readers, records
from rcmed_jax.data.records import Record
from rcmed_jax.eval.evaluate import Request

# modality word, dataset, classes that its images may hold
SETS = (
  ("ct", "toy", ("liver", "right kidney", "spleen")),
  ("x", "chest", ("left lung", "right lung", "heart")),
  ("dermoscopy", "skin", ("skin lesion", "hair")),
)
SECRET = "SECRET words that only a description holds"


@dataclasses.dataclass(frozen=True)
class Found:
  name: str
  present: bool
  mask_IJ: np.ndarray | None
  box: tuple[int, int, int, int] | None
  confidence: float


@dataclasses.dataclass(frozen=True)
class Answer:
  text: str
  modality: str | None
  targets: tuple[Found, ...]


class Oracle:
  """Answers from the reference, after reading the question as a model would.

  Args:
    index: what it knows.
    shift: pixels by which its masks are off.
    blind: classes that it never finds.
  """

  def __init__(self, index: list[Record], *, shift=0, blind=()):
    self.shift, self.blind = shift, blind
    self.requests: list[Request] = []
    self.known = {}
    for record in index:
      try:
        triplet = record.load()
      except records.DataError:
        continue
      masks = dict(zip(triplet.classes, triplet.masks_GIJ, strict=True))
      self.known[triplet.image_IJC.tobytes()] = (triplet.modality, masks)
    self.names = sorted({name for r in index for _, name in r.masks})

  def __call__(
    self, requests: Iterable[Request]
  ) -> Iterator[tuple[int, Answer]]:
    """Answers come two at a time, the later first."""
    numbered = enumerate(requests)
    while pair := list(itertools.islice(numbered, 2)):
      self.requests += [request for _, request in pair]
      for number, request in pair[::-1]:
        yield number, self.answer(request)

  def answer(self, request: Request) -> Answer:
    modality, masks = self.known.get(request.image_IJC.tobytes(), (None, {}))
    if request.classes is None:
      asked = list(masks)
    else:
      asked = [name for name in self.names if name in request.question]
    targets = tuple(
      self.found(name, masks) for name in asked if name not in self.blind
    )
    present = [target.name for target in targets if target.present]
    phrases = ", ".join(f"<p> {name} </p> [SEG]" for name in present)
    text = f"This is a <p> {modality} </p> image. It holds {phrases}.</s>"
    return Answer(text, modality, targets)

  def found(self, name: str, masks: dict[str, np.ndarray]) -> Found:
    if name not in masks:
      return Found(name, False, None, None, 0.0)
    mask_IJ = np.roll(masks[name], self.shift, axis=(0, 1))
    return Found(name, True, mask_IJ, None, 0.9)


def write_world(
  folder: pathlib.Path, *, per_set: int = 4, side: int = 48
) -> pathlib.Path:
  """Returns the path of an index of drawn images and their descriptions."""
  random = np.random.default_rng(0)
  index, descriptions = {}, {}
  for part in ("images", "masks"):
    (folder / part).mkdir(parents=True)
  for word, dataset, classes in SETS:
    for number in range(per_set):
      stem = f"{word}--{dataset}--{number:02d}"
      image_IJC = random.normal(70, 12, (side, side + 8, 3))
      entries = []
      for place, name in enumerate(classes):
        if len(classes) > 2 and place == number % 3:
          continue
        mask_IJ = np.zeros((side, side + 8), np.uint8)
        centre = (int(side * (0.25 + 0.3 * place)), int(side * 0.5))
        axes = random.integers(side // 8, side // 5, 2).tolist()
        angle = float(random.uniform(0, 180))
        cv2.ellipse(mask_IJ, centre, axes, angle, 0, 360, 255, -1)
        image_IJC[mask_IJ > 0] += 40 + 30 * place
        path = f"masks/{stem}--{name.replace(' ', '_')}.png"
        cv2.imwrite(str(folder / path), mask_IJ)
        entries.append({path: name.replace(" ", "_")})
      image = f"images/{stem}.png"
      pixels_IJC = np.clip(image_IJC, 0, 255).astype(np.uint8)
      cv2.imwrite(str(folder / image), pixels_IJC)
      index[image] = entries
      descriptions[image] = SECRET
  (folder / "descriptions.json").write_text(json.dumps(descriptions))
  path = folder / "image2label_test.json"
  path.write_text(json.dumps(index))
  return path


def read_world(path: pathlib.Path) -> list[Record]:
  return readers.read_index(path, path.parent / "descriptions.json")


@pytest.fixture
def world(tmp_path: pathlib.Path) -> list[Record]:
  """Records of a freshly written world, which a test may damage."""
  return read_world(write_world(tmp_path / "world"))


@pytest.fixture
def make_world(tmp_path: pathlib.Path):
  """Writes a world of its own, with the arguments of `write_world`."""
  return lambda **more: read_world(write_world(tmp_path / "made", **more))


@pytest.fixture
def oracle():
  """The class of the model that knows the world."""
  return Oracle
