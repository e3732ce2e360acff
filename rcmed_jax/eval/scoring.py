"""One answer against its reference: the rows that it adds to the tally."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, TypeVar

import numpy as np

from rcmed_jax.data import images, prompts
from rcmed_jax.eval import (
  failures,
  instances,
  metrics,
  overlays,
  phrases,
  surfaces,
)
from rcmed_jax.eval.protocols import PRESENT, Answer, Ask
from rcmed_jax.eval.registry import Registry
from rcmed_jax.eval.rows import (
  Absent,
  Alone,
  Control,
  MaskScore,
  Named,
  Phrase,
  Present,
  Tally,
)

Row = TypeVar("Row", bound=Alone)

# What a target without a name is called.
UNNAMED = "(unnamed)"

# Tolerance of surfaces where millimetres are not known.
PIXELS = 2.0


@dataclasses.dataclass(frozen=True)
class _Claim:
  """What an answer says of one class."""

  present: bool
  mask_IJ: np.ndarray  # bool; empty where absent
  confidence: float  # 0 where absent


def score(
  ask: Ask,
  answer: Answer,
  registry: Registry,
  tally: Tally,
  gallery: overlays.Gallery,
) -> None:
  """Adds one answer to the tally, and to the gallery if it is shown.

  Raises:
    ValueError: a mask is not on the grid of the request's image, or a
      confidence is not one.
  """
  if ask.kind == "named":
    scores = _mask_scores(ask, answer, registry)
    tally.masks += scores
    _keep(ask, answer, scores, gallery)
  elif ask.kind == "open":
    tally.open_masks += _mask_scores(ask, answer, registry)
    tally.named.append(_named(ask, answer))
    _keep_wrong_names(ask, answer, tally.named[-1], gallery)
  elif ask.kind == "negative":
    tally.absent.append(_alone(Absent, ask, answer, registry))
    if not tally.absent[-1].rejected:
      said = {ask.target: _claim(ask, answer)}
      _keep_said(ask, answer, failures.FALSE_ALARM, (), said, gallery)
  elif ask.kind == PRESENT:
    tally.present.append(_alone(Present, ask, answer, registry))
  elif ask.variant:
    tally.phrases.append(_phrase(ask, answer, ask.variant))
  else:
    tally.controls += _control(ask, answer)


def _mask_scores(
  ask: Ask, answer: Answer, registry: Registry
) -> list[MaskScore]:
  """Scores each reference class; one the answer lacks has an empty mask."""
  scores = []
  references = _references(ask)
  for name in _asked(ask):
    ref_IJ = references[name]
    claim = _claim(ask, answer, name)
    surface, tolerance = _surface(ask, claim.mask_IJ, ref_IJ, registry, name)
    scores.append(
      MaskScore(
        record=ask.record.id,
        dataset=ask.record.dataset,
        modality=ask.triplet.modality,
        name=name,
        counts=metrics.count(claim.mask_IJ, ref_IJ),
        box_iou=metrics.box_iou(claim.mask_IJ, ref_IJ),
        present=claim.present,
        confidence=claim.confidence,
        nsd=surface.nsd[0],
        hd95=surface.hd95,
        tolerance=tolerance,
        unit=surface.unit,
        pred_box=images.box(claim.mask_IJ),
        ref_box=images.box(ref_IJ),
        instances=_instances(ask, claim.mask_IJ, ref_IJ, registry, name),
        canonical=registry.canonical(name, ask.triplet.modality),
      )
    )
  return scores


def _surface(
  ask: Ask,
  pred_IJ: np.ndarray,
  ref_IJ: np.ndarray,
  registry: Registry,
  name: str,
) -> tuple[surfaces.SurfaceScore, float]:
  """Distances of the surfaces and the tolerance, both in mm where it is known.

  A task without a tolerance, and an image without a spacing, have pixels.
  """
  spacing = ask.triplet.spacing_mm
  tolerance = registry.task(ask.triplet.modality, name).tolerance_mm
  if spacing is None or tolerance is None:
    spacing, tolerance = None, PIXELS
  return surfaces.compare(pred_IJ, ref_IJ, (tolerance,), spacing), tolerance


def _instances(
  ask: Ask,
  pred_IJ: np.ndarray,
  ref_IJ: np.ndarray,
  registry: Registry,
  name: str,
) -> instances.InstanceScore | None:
  """Instances of a task that is counted one by one.

  Those of the reference where the data has several masks of the class; else,
  and of what is predicted, connected parts.
  """
  if not registry.task(ask.triplet.modality, name).instances:
    return None
  ref_labels_IJ = ask.triplet.instances.get(name)
  if ref_labels_IJ is None:
    ref_labels_IJ = instances.from_mask_IJ(ref_IJ)
  return instances.score(instances.from_mask_IJ(pred_IJ), ref_labels_IJ)


def _named(ask: Ask, answer: Answer) -> Named:
  said = (t.name or UNNAMED for t in answer.targets if t.present)
  return Named(
    record=ask.record.id,
    modality=ask.triplet.modality,
    said_modality=answer.modality,
    classes=ask.triplet.classes,
    said_classes=tuple(dict.fromkeys(said)),
    said=prompts.description_in(answer.text),
    description=ask.record.description,
  )


def _alone(
  kind: type[Row], ask: Ask, answer: Answer, registry: Registry
) -> Row:
  claim = _claim(ask, answer)
  return kind(
    record=ask.record.id,
    dataset=ask.record.dataset,
    modality=ask.triplet.modality,
    name=ask.target,
    rejected=not claim.present,
    confidence=claim.confidence,
    box=images.box(claim.mask_IJ),
    canonical=registry.canonical(ask.target, ask.triplet.modality),
  )


def _phrase(ask: Ask, answer: Answer, variant: phrases.Variant) -> Phrase:
  """Scores all that comes back: the answer may use the question's words."""
  claim = _claim(ask, answer)
  counts = metrics.count(claim.mask_IJ, _references(ask)[ask.target])
  return Phrase(
    record=ask.record.id,
    modality=ask.triplet.modality,
    name=ask.target,
    kind=variant.kind,
    phrase=variant.text,
    dice=counts.dice,
    present=claim.present,
    confidence=claim.confidence,
  )


def _control(ask: Ask, answer: Answer) -> list[Control]:
  """Scores the answer to a spoilt question or image.

  A wrong name is scored with everything that comes back, whatever the answer
  calls it. Over noise there is no reference, so no Dice, and every target
  counts, asked for or not.
  """
  references = _references(ask)
  asked = list(ask.request.classes or ())
  if ask.kind == "wrong_name":
    claim = _claim(ask, answer)
    counts = metrics.count(claim.mask_IJ, references[ask.target])
    return [_row(ask, asked[0], ask.target, claim, counts.dice)]
  if ask.kind == "noise":
    said = [target.name for target in answer.targets if target.present]
    return [
      _row(ask, name, name, _claim(ask, answer, name), None)
      for name in dict.fromkeys((*asked, *said))
    ]
  rows = []
  for name in asked:
    claim = _claim(ask, answer, name)
    counts = metrics.count(claim.mask_IJ, references[name])
    row = _row(ask, name, name, claim, counts.dice)
    if ask.kind == "wrong_modality":
      row = dataclasses.replace(
        row, asked_modality=ask.modality, said_modality=answer.modality
      )
    rows.append(row)
  return rows


def _row(
  ask: Ask, asked: str, target: str, claim: _Claim, dice: float | None
) -> Control:
  return Control(
    kind=ask.kind,
    record=ask.record.id,
    modality=ask.triplet.modality,
    asked=asked,
    target=target,
    dice=dice,
    present=claim.present,
    confidence=claim.confidence,
  )


def _keep(
  ask: Ask,
  answer: Answer,
  scores: Sequence[MaskScore],
  gallery: overlays.Gallery,
) -> None:
  """Draws the pictures of an image, if the report will show it."""
  dice = tuple(score.counts.dice for score in scores)
  reasons = tuple(failures.reason(score.counts) for score in scores)
  rank = (sum(dice) / len(dice), ask.record.id, ask.request.question)
  if not gallery.wants(rank, reasons):
    return
  asked, masks = _asked(ask), _references(ask)
  references = [masks[name] for name in asked]
  predictions = [_claim(ask, answer, name).mask_IJ for name in asked]
  present = tuple(score.present for score in scores)
  gallery.add(
    overlays.Sample(
      **_shown(ask, answer, references, predictions),
      classes=asked,
      dice=dice,
      present=present,
      reasons=reasons,
    )
  )


def _keep_wrong_names(
  ask: Ask, answer: Answer, row: Named, gallery: overlays.Gallery
) -> None:
  """Draws an answer that leaves a class out and names one that is not there."""
  left_out = [name for name in row.classes if name.lower() not in row.named]
  said = {
    name: _claim(ask, answer, "" if name == UNNAMED else name)
    for name in row.said_classes
    if name.lower() not in row.there
  }
  if left_out and said:
    _keep_said(ask, answer, failures.WRONG_NAME, left_out, said, gallery)


def _keep_said(
  ask: Ask,
  answer: Answer,
  reason: str,
  left_out: Sequence[str],
  said: Mapping[str, _Claim],
  gallery: overlays.Gallery,
) -> None:
  """Draws what is said of classes that are not there, if it will be shown.

  Args:
    reason: of `failures.WITHOUT_DICE`.
    left_out: classes of the image that the answer does not hold.
    said: class that the image lacks -> what the answer says of it.
  """
  if not gallery.wants((0.0, ask.record.id, ask.request.question), (reason,)):
    return
  clear_IJ = np.zeros(ask.request.image_IJC.shape[:2], bool)
  references = [_references(ask)[name] for name in left_out]
  claims = [claim.mask_IJ for claim in said.values()]
  gallery.add(
    overlays.Sample(
      **_shown(
        ask,
        answer,
        [*references, *[clear_IJ] * len(claims)],
        [*[clear_IJ] * len(references), *claims],
      ),
      classes=(*left_out, *said),
      dice=(*[0.0] * len(left_out), *[None] * len(said)),
      present=(*[False] * len(left_out), *[True] * len(said)),
      reasons=(reason,),
    )
  )


def _shown(
  ask: Ask,
  answer: Answer,
  references: Sequence[np.ndarray],
  predictions: Sequence[np.ndarray],
) -> dict[str, Any]:
  """What a sample shows of any question."""
  return {
    "record": ask.record.id,
    "modality": ask.triplet.modality,
    "question": ask.request.question,
    "answer": answer.text,
    "shape": ask.triplet.image_IJC.shape[:2],
    "image": overlays.image_png(ask.triplet.image_IJC),
    "reference": overlays.overlay_png(references),
    "prediction": overlays.overlay_png(predictions, outlines=references),
  }


def _references(ask: Ask) -> dict[str, np.ndarray]:
  """Returns class -> reference mask of the image."""
  masks_GIJ = ask.triplet.masks_GIJ
  return dict(zip(ask.triplet.classes, masks_GIJ, strict=True))


def _asked(ask: Ask) -> tuple[str, ...]:
  """Returns the classes whose masks are scored: all, if none was named."""
  return ask.request.classes or ask.triplet.classes


def _claim(ask: Ask, answer: Answer, name: str | None = None) -> _Claim:
  """Returns the union of an answer's targets of one class, case ignored.

  Args:
    name: the class; None for the union of all targets.
  """
  shape = ask.request.image_IJC.shape[:2]
  found = [
    target
    for target in answer.targets
    if target.present and (name is None or target.name.lower() == name.lower())
  ]
  mask_IJ = np.zeros(shape, bool)
  for target in found:
    if not 0 <= target.confidence <= 1:
      raise ValueError(
        f"{ask.record.id}: the confidence of {target.name!r} is "
        f"{target.confidence}, expected 0..1; the model's numbers are not "
        "finite, or its temperature is wrong."
      )
    if target.mask_IJ is None:
      continue
    if target.mask_IJ.shape != shape:
      raise ValueError(
        f"{ask.record.id}: the mask of {target.name!r} has the shape "
        f"{target.mask_IJ.shape}, expected {shape}, that of the request's "
        "image; resize masks to it."
      )
    mask_IJ |= target.mask_IJ
  return _Claim(
    present=bool(found),
    mask_IJ=mask_IJ,
    confidence=max((float(target.confidence) for target in found), default=0.0),
  )
