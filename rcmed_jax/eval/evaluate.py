"""Evaluation of one split: every record read once, asked, scored, written.

A record that cannot be read goes to the quarantine and is counted there; none
takes its place. Scores do not depend on the number of devices or processes:
requests are handed over in the order of the records, chunk by chunk, and
padding, if a model needs any, stays on its side.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from rcmed_jax.data import mixture
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Sample
from rcmed_jax.eval import ledger, metrics, outputs, overlays, summary
from rcmed_jax.eval.protocols import (
  Answer,
  Ask,
  EvalConfig,
  Found,
  Request,
  asks,
  draw,
)
from rcmed_jax.eval.summary import Absent, Control, Quarantined, Summary, Tally

__all__ = ["Answer", "EvalConfig", "Found", "Request", "Summary", "evaluate"]


@dataclasses.dataclass(frozen=True)
class _Claim:
  """What an answer says of one class."""

  present: bool
  mask_IJ: np.ndarray  # bool; empty where absent
  confidence: float  # 0 where absent


def evaluate(
  index: Sequence[Sample],
  answers: Callable[[Iterable[Request]], Iterable[tuple[int, Answer]]],
  config: EvalConfig,
  out_dir: str | Path,
  *,
  split: str = "test",
  model: str = "",
  progress: Callable[[Sequence[Sample]], Iterable[Sample]] = iter,
  part: int = 0,
  parts: int = 1,
  barrier: Callable[[], None] = lambda: None,
) -> Summary | None:
  """The summary of a split, after its files are written to `out_dir`.

  Stopped, and called again, it goes on after the last chunk of records whose
  scores it put down.

  Args:
    index: the records; all of them tell which classes may be asked as absent,
      also where `config.limit` evaluates fewer.
    answers: of requests that it reads one by one, (number, answer) in any
      order; masks on the request's grid.
    split: names the files, as in `summary--test.json`.
    model: what answers, so that scores of two models are never mixed.
    progress: wraps the records as they are read, for a progress bar.
    part, parts: the process, of how many that share `out_dir`; each takes
      every n-th chunk, and the first returns the summary of all.
    barrier: returns once every process has come to it.

  Raises:
    ValueError: no record, none that can be read, answers that do not fit
      their requests, or `out_dir` holds scores of another evaluation.

  Source: the released evaluator's files; its protocol differs (it feeds the
  reference answer, here the model generates).
  """
  if not index:
    raise ValueError(
      f"split {split!r} holds no record; expected at least one. Check the "
      "index file."
    )
  chosen = draw(index, config.limit, config.seed)
  evaluated = [record for record in index if record.id in chosen]
  told = _told(evaluated, config, split, model)
  scores = ledger.Ledger(Path(out_dir) / f"partial--{split}", told, part)
  examples = _examples(evaluated, config.gallery, config.seed)
  gallery = overlays.Gallery(examples, config.worst)
  scores.pictures(gallery)
  world = _world(index, evaluated, config)
  records = iter(progress(evaluated))
  count = -(-len(evaluated) // config.chunk)
  for number in range(count):
    chunk = list(itertools.islice(records, config.chunk))
    if number % parts == part and number not in scores:
      scores.add(number, _chunk(chunk, answers, world, gallery), gallery)
  barrier()
  if part:
    return None
  gallery = overlays.Gallery(examples, config.worst)
  scores.pictures(gallery)
  tally = scores.tally(count)
  result = summary.summarize(tally, config, split, gallery)
  outputs.write(result, tally, Path(out_dir))
  scores.close()
  return result


@dataclasses.dataclass(frozen=True)
class _World:
  """What the questions about one image take from all others."""

  config: EvalConfig
  siblings: Mapping[tuple[str, str], Sequence[str]]
  vocabulary: Sequence[str]
  controlled: set[str]  # ids of records on which the controls run


def _world(
  index: Sequence[Sample], evaluated: Sequence[Sample], config: EvalConfig
) -> _World:
  siblings = mixture.class_table(index)
  vocabulary = sorted({name for names in siblings.values() for name in names})
  controlled = draw(evaluated, config.control_limit, config.seed)
  return _World(config, siblings, vocabulary, controlled)


def _told(
  evaluated: Sequence[Sample], config: EvalConfig, split: str, model: str
) -> dict[str, Any]:
  """All that scores depend on, as JSON values."""
  digest = hashlib.sha256()
  for record in evaluated:
    digest.update(json.dumps([record.id, record.classes]).encode())
  # What tables and pictures are made of the scores, and nothing else.
  later = {"bootstrap", "batch_size", "confident", "gallery", "worst"}
  settings = {
    name: value
    for name, value in dataclasses.asdict(config).items()
    if name not in later
  }
  told = {"split": split, "model": model, "records": digest.hexdigest()}
  return json.loads(json.dumps(told | settings))


def _chunk(
  records: Sequence[Sample],
  answers: Callable[[Iterable[Request]], Iterable[tuple[int, Answer]]],
  world: _World,
  gallery: overlays.Gallery,
) -> Tally:
  """The scores of a run of records."""
  tally = Tally()
  waiting: dict[int, Ask] = {}
  scored: dict[int, Tally] = {}

  def requests() -> Iterator[Request]:
    for number, ask in enumerate(_stream(records, world, tally)):
      waiting[number] = ask
      yield ask.request

  for number, answer in answers(requests()):
    if number not in waiting:
      raise ValueError(
        f"an answer is numbered {number}, but that request was not made or is "
        "answered already; each must have one answer."
      )
    scored[number] = Tally()
    _score(waiting.pop(number), answer, scored[number], gallery)
  if waiting:
    raise ValueError(
      f"{len(waiting)} of {len(waiting) + len(scored)} requests have no "
      "answer; each must have one."
    )
  for number in sorted(scored):
    tally.extend(scored[number])
  return tally


def _stream(
  records: Sequence[Sample], world: _World, tally: Tally
) -> Iterator[Ask]:
  """All requests, one record in memory at a time."""
  for record in records:
    try:
      triplet = record.load()
    except DataError as error:
      tally.quarantine.append(
        Quarantined(record.id, error.path, error.field, str(error))
      )
      continue
    tally.images += 1
    yield from asks(
      record,
      triplet,
      world.config,
      siblings=world.siblings[record.dataset, record.modality],
      vocabulary=world.vocabulary,
      controls=record.id in world.controlled,
    )


def _examples(evaluated: Sequence[Sample], number: int, seed: int) -> set[str]:
  """Returns the ids of `number` records of each modality, drawn by seed."""
  groups: dict[str, list[Sample]] = {}
  for record in evaluated:
    groups.setdefault(record.modality, []).append(record)
  if not number:
    return set()
  return {id for group in groups.values() for id in draw(group, number, seed)}


def _score(
  ask: Ask, answer: Answer, tally: Tally, gallery: overlays.Gallery
) -> None:
  """Adds one answer to the tally."""
  if ask.kind == "named":
    scores = _mask_scores(ask, answer)
    tally.masks += scores
    _keep(ask, answer, scores, gallery)
  elif ask.kind == "open":
    tally.open_masks += _mask_scores(ask, answer)
    tally.named.append(_named(ask, answer))
  elif ask.kind == "absent":
    tally.absent.append(_absent(ask, answer))
  else:
    tally.controls += _control(ask, answer)


def _mask_scores(ask: Ask, answer: Answer) -> list[metrics.MaskScore]:
  """Scores each reference class; one the answer lacks has an empty mask."""
  scores = []
  references = _references(ask)
  for name in _asked(ask):
    ref_IJ = references[name]
    claim = _claim(ask, answer, name)
    scores.append(
      metrics.MaskScore(
        record=ask.record.id,
        dataset=ask.record.dataset,
        modality=ask.triplet.modality,
        name=name,
        counts=metrics.count(claim.mask_IJ, ref_IJ),
        box_iou=metrics.box_iou(claim.mask_IJ, ref_IJ),
        present=claim.present,
        confidence=claim.confidence,
      )
    )
  return scores


def _named(ask: Ask, answer: Answer) -> metrics.Named:
  said = (t.name or "(unnamed)" for t in answer.targets if t.present)
  return metrics.Named(
    record=ask.record.id,
    modality=ask.triplet.modality,
    said_modality=answer.modality,
    classes=ask.triplet.classes,
    said_classes=tuple(dict.fromkeys(said)),
  )


def _absent(ask: Ask, answer: Answer) -> Absent:
  claim = _claim(ask, answer, ask.target)
  return Absent(
    record=ask.record.id,
    dataset=ask.record.dataset,
    modality=ask.triplet.modality,
    name=ask.target,
    rejected=not claim.present,
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
    rows.append(_row(ask, name, name, claim, counts.dice))
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
  scores: Sequence[metrics.MaskScore],
  gallery: overlays.Gallery,
) -> None:
  """Draws the pictures of an image, if the report will show it."""
  dice = tuple(score.counts.dice for score in scores)
  if not gallery.wants(ask.record.id, sum(dice) / len(dice)):
    return
  asked, masks = _asked(ask), _references(ask)
  references = [masks[name] for name in asked]
  predictions = [_claim(ask, answer, name).mask_IJ for name in asked]
  gallery.add(
    overlays.Sample(
      record=ask.record.id,
      modality=ask.triplet.modality,
      question=ask.request.question,
      answer=answer.text,
      classes=asked,
      dice=dice,
      present=tuple(score.present for score in scores),
      shape=ask.triplet.image_IJC.shape[:2],
      image=overlays.image_png(ask.triplet.image_IJC),
      reference=overlays.overlay_png(references),
      prediction=overlays.overlay_png(predictions, outlines=references),
    )
  )


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
