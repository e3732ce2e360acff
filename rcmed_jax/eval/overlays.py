"""Pictures kept while evaluating: small, so that memory stays bounded."""

import bisect
from collections.abc import Callable, Iterable, Sequence
import dataclasses

import cv2
import numpy as np

from rcmed_jax.eval.failures import REASONS, WITHOUT_DICE

# Colours of the targets of one image, RGB: told apart on grey and on tissue,
# and by readers who confuse red and green (after Okabe and Ito).
COLORS = (
  (86, 180, 233),
  (230, 159, 0),
  (0, 190, 140),
  (240, 228, 66),
  (226, 110, 176),
  (225, 94, 20),
  (150, 140, 255),
  (160, 220, 90),
)
IMAGE_SIDE = 256  # pixels; larger images are reduced, none is enlarged
OVERLAY_SIDE = 384  # pixels; contours are drawn at this size
FILL = 84  # opacity of the fill, 0..255
LINE = 2  # pixels, width of a contour
REFERENCE_LINE = (255, 255, 255)  # reference drawn over the prediction

# Images drawn by seed whose pictures are held until all is scored, when those
# nearest to the median are known. All pictures would not fit.
CANDIDATES = 32


@dataclasses.dataclass(frozen=True)
class Sample:
  """One image as the report shows it. The pictures are PNG bytes."""

  record: str
  modality: str
  question: str
  answer: str
  classes: tuple[str, ...]  # the place of a class is the place of its colour
  dice: tuple[float | None, ...]  # of each class; None: the image lacks it
  present: tuple[bool, ...]  # the answer holds the class
  shape: tuple[int, int]  # rows and columns of the image
  image: bytes  # RGB
  reference: bytes  # RGBA, clear outside the masks
  prediction: bytes  # RGBA, with the reference as a thin white line
  reasons: tuple[str, ...] = ()  # why classes failed; see `failures.REASONS`

  @property
  def key(self) -> tuple[str, str]:
    """What no other sample has: an image may be asked several questions."""
    return self.record, self.question

  @property
  def mean_dice(self) -> float:
    found = [dice for dice in self.dice if dice is not None]
    return sum(found) / len(found) if found else 0.0


# How a sample ranks: its mean Dice, then what no other sample has.
Rank = tuple[float, str, str]


class Gallery:
  """Keeps the samples that the report shows, whatever order they come in.

  Args:
    chosen: records whose samples are shown, whatever their scores.
    worst: samples of the lowest Dice that are shown; half as many of the
      highest, and near the median.
    candidates: records of which those near the median are found.
  """

  def __init__(
    self, chosen: set[str], worst: int, candidates: Iterable[str] = ()
  ):
    self._chosen = chosen
    self._worst = worst
    self._half = -(-worst // 2)
    self._candidates = frozenset(candidates if worst else ())
    self._drawn: list[Sample] = []  # the candidates' samples
    self.examples: list[Sample] = []
    self.lowest: list[Sample] = []  # lowest mean Dice first
    self.highest: list[Sample] = []  # highest mean Dice first
    self.failures: dict[str, Sample] = {}  # of each reason the lowest

  def wants(self, rank: Rank, reasons: Iterable[str] = ()) -> bool:
    """Whether a sample of this rank and these failures would be kept."""
    if self._worst and any(self._is_case(one, rank) for one in reasons):
      return True
    if not WITHOUT_DICE.isdisjoint(reasons):
      return False
    _, record, _ = rank
    return (
      record in self._chosen
      or record in self._candidates
      or _is_among(rank, self.lowest, self._worst, _badness)
      or _is_among(_up(rank), self.highest, self._half, _goodness)
    )

  def add(self, sample: Sample) -> None:
    """Keeps a wanted sample where it belongs, once."""
    if any(sample.key == held.key for held in self.samples()):
      return
    rank = _badness(sample)
    for one in sample.reasons if self._worst else ():
      if self._is_case(one, rank):
        self.failures[one] = sample
    if not WITHOUT_DICE.isdisjoint(sample.reasons):
      return
    if sample.record in self._chosen:
      bisect.insort(self.examples, sample, key=_place)
    if sample.record in self._candidates:
      self._drawn.append(sample)
    _insert(sample, self.lowest, self._worst, _badness)
    _insert(sample, self.highest, self._half, _goodness)

  def samples(self) -> list[Sample]:
    """All that are kept, each once, in no order that means anything."""
    kept = (
      *(*self.examples, *self.lowest, *self.highest, *self._drawn),
      *self.failures.values(),
    )
    return list({sample.key: sample for sample in kept}.values())

  def near(self, dice: float) -> list[Sample]:
    """The candidates of the nearest mean Dice, nearest first."""
    ranked = sorted(
      self._drawn, key=lambda s: (abs(s.mean_dice - dice), _badness(s))
    )
    return ranked[: self._half]

  def _is_case(self, reason: str, rank: Rank) -> bool:
    """Whether a failure is worse than the one that is kept of its reason."""
    held = self.failures.get(reason)
    return reason in REASONS and (held is None or rank < _badness(held))


def color(place: int) -> tuple[int, int, int]:
  """Returns the RGB colour of an image's target at `place`."""
  return COLORS[place % len(COLORS)]


def image_png(image_IJC: np.ndarray) -> bytes:
  """Returns uint8[I, J, 3] RGB as PNG, reduced to `IMAGE_SIDE` at most."""
  scale = min(1.0, IMAGE_SIDE / max(image_IJC.shape[:2]))
  size = _size(image_IJC.shape[:2], scale)
  small_IJC = cv2.resize(image_IJC, size, interpolation=cv2.INTER_AREA)
  return _png(cv2.cvtColor(small_IJC, cv2.COLOR_RGB2BGR))


def overlay_png(
  masks: Sequence[np.ndarray], outlines: Sequence[np.ndarray] = ()
) -> bytes:
  """Returns masks as a clear PNG: translucent fill, solid contour.

  Args:
    masks: bool[I, J] each; the k-th is drawn in `color(k)`.
    outlines: bool[I, J] each, drawn as a thin white line on top.
  """
  rows, columns = masks[0].shape
  scale = OVERLAY_SIDE / max(rows, columns)
  size = _size((rows, columns), scale)
  canvas_IJC = np.zeros((size[1], size[0], 4), np.uint8)
  large = [_enlarge(mask_IJ, size) for mask_IJ in masks]
  for place, mask_IJ in enumerate(large):
    canvas_IJC[mask_IJ > 0] = (*color(place)[::-1], FILL)
  for place, mask_IJ in enumerate(large):
    _outline(canvas_IJC, mask_IJ, color(place), LINE)
  for mask_IJ in outlines:
    _outline(canvas_IJC, _enlarge(mask_IJ, size), REFERENCE_LINE, 1)
  return _png(canvas_IJC)


def painted(image_IJC: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the image, uint8[I, J, 3] RGB, with masks filled and outlined."""
  result_IJC = image_IJC.copy()
  opacity = FILL / 255
  for place, mask_IJ in enumerate(masks):
    tinted = (1 - opacity) * result_IJC[mask_IJ] + opacity * np.array(
      color(place)
    )
    result_IJC[mask_IJ] = tinted.round().astype(np.uint8)
  for place, mask_IJ in enumerate(masks):
    contours, _ = cv2.findContours(
      mask_IJ.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(result_IJC, contours, -1, color(place), LINE)
  return result_IJC


def _badness(sample: Sample) -> Rank:
  return sample.mean_dice, *sample.key


def _goodness(sample: Sample) -> Rank:
  return _up(_badness(sample))


def _up(rank: Rank) -> Rank:
  """The rank from the other end, where names still go up."""
  dice, record, question = rank
  return -dice, record, question


def _place(sample: Sample) -> tuple[str, str, str]:
  return sample.modality.lower(), *sample.key


def _is_among(
  rank: Rank, held: Sequence[Sample], number: int, key: Callable[[Sample], Rank]
) -> bool:
  """Whether a rank is one of the `number` first."""
  return len(held) < number or bool(number and rank < key(held[-1]))


def _insert(
  sample: Sample,
  held: list[Sample],
  number: int,
  key: Callable[[Sample], Rank],
) -> None:
  if _is_among(key(sample), held, number, key):
    bisect.insort(held, sample, key=key)
    del held[number:]


def _size(shape: tuple[int, int], scale: float) -> tuple[int, int]:
  """Returns (columns, rows), as OpenCV wants them, at least one pixel each."""
  return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def _enlarge(mask_IJ: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  soft_IJ = cv2.resize(mask_IJ.astype(np.uint8) * 255, size)  # bilinear
  return (soft_IJ > 127).astype(np.uint8)


def _outline(
  canvas_IJC: np.ndarray,
  mask_IJ: np.ndarray,
  rgb: tuple[int, int, int],
  width: int,
) -> None:
  contours, _ = cv2.findContours(mask_IJ, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
  cv2.drawContours(canvas_IJC, contours, -1, (*rgb[::-1], 255), width)


def _png(image_IJC: np.ndarray) -> bytes:
  done, data = cv2.imencode(".png", image_IJC, [cv2.IMWRITE_PNG_COMPRESSION, 6])
  if not done:
    raise ValueError(
      f"OpenCV cannot write an image of shape {image_IJC.shape} as PNG."
    )
  return data.tobytes()
