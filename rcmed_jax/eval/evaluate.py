"""Evaluation of one split: every record read once, asked, scored, written.

What the index rejects and what cannot be read goes to the quarantine and is
counted there; nothing takes its place. Scores do not depend on the number of
devices or processes: requests are handed over in the order of the records,
chunk by chunk, and padding, if a model needs any, stays on its side.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import dataclasses
import itertools
from pathlib import Path
from typing import Any

from rcmed_jax.data import mixture
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Sample, Triplet
from rcmed_jax.eval import (
  external,
  ledger,
  outputs,
  overlays,
  phrases,
  presence,
  scoring,
  summary,
  tasks,
  told,
  wording,
)
from rcmed_jax.eval.protocols import (
  Answer,
  Ask,
  EvalConfig,
  Found,
  Request,
  asks,
  draw,
)
from rcmed_jax.eval.registry import Registry
from rcmed_jax.eval.rows import Quarantined, Tally
from rcmed_jax.eval.summary import Summary

# Records that are read while those before them are asked and scored.
AHEAD = 4

__all__ = ["Answer", "EvalConfig", "Found", "Request", "Summary", "evaluate"]


def evaluate(
  index: Sequence[Sample],
  answers: Callable[[Iterable[Request]], Iterable[tuple[int, Answer]]],
  config: EvalConfig,
  out_dir: str | Path,
  *,
  split: str = "test",
  model: str = "",
  made: Mapping[str, Any] | None = None,
  progress: Callable[[Sequence[Sample]], Iterable[Sample]] = iter,
  part: int = 0,
  parts: int = 1,
  barrier: Callable[[], None] = lambda: None,
  most_targets: int = 0,
  chosen: presence.Chosen | None = None,
  training: external.Training | None = None,
  rejected: Sequence[Quarantined] = (),
  finish: Callable[[Summary], None] = lambda _: None,
) -> Summary | None:
  """The summary of a split, after its files are written to `out_dir`.

  Stopped, and called again, it goes on after the last chunk of records whose
  scores it put down; also where `finish` failed.

  Args:
    index: the records; all of them tell which classes may be asked as absent,
      also where `config.limit` evaluates fewer.
    answers: of requests that it reads one by one, (number, answer) in any
      order; masks on the request's grid.
    split: names the files, as in `summary--test.json`.
    model: what answers, so that scores of two models are never mixed.
    made: how the answers were made, as JSON values, which the summary tells.
    progress: wraps the records as they are read, for a progress bar.
    part, parts: the process, of how many that share `out_dir`; each takes
      every n-th chunk, and the first returns the summary of all.
    barrier: returns once every process has come to it.
    most_targets: masks in one answer, so that no question names more classes;
      0: any number.
    chosen: the threshold of presence, chosen on another split.
    training: what the weights were trained on; None: it is not known.
    rejected: what the index holds besides its records; counted and listed with
      the records that cannot be read.
    finish: makes what else is made of the summary; the scores put down are
      deleted after it.

  Raises:
    ValueError: no record, none with a target, none that can be read, answers
      that do not fit their requests, or `out_dir` holds scores of another
      evaluation.
    NotImplementedError: the records have descriptions, and the libraries that
      compare them are not installed.

  Source: the released evaluator's files; its protocol differs (it feeds the
  reference answer, here the model generates).
  """
  if not index:
    raise ValueError(
      f"split {split!r} holds no record; expected at least one. Check the "
      "index file."
    )
  drawn = draw(index, config.limit, config.seed)
  evaluated = [record for record in index if record.id in drawn]
  _require_scorable(evaluated, config, split)
  world = _world(index, evaluated, config, most_targets)
  depends = told.told(
    *(evaluated, config, world.siblings, world.registry),
    split=split,
    model=model,
    most_targets=most_targets,
  )
  scores = ledger.Ledger(Path(out_dir) / f"partial--{split}", depends, part)
  gallery = _gallery(evaluated, config)
  scores.pictures(gallery)
  records = iter(progress(evaluated))
  count = -(-len(evaluated) // config.chunk)
  for number in range(count):
    chunk = itertools.islice(records, config.chunk)
    if number % parts == part and number not in scores:
      scores.add(number, _chunk(chunk, answers, world, gallery), gallery)
    collections.deque(chunk, maxlen=0)  # scored before, or by another
  barrier()
  if part:
    return None
  gallery = _gallery(evaluated, config)
  scores.pictures(gallery)
  tally = Tally(quarantine=list(rejected))
  tally.extend(scores.tally(count))
  result = summary.summarize(
    tally, config, split, gallery, world.registry, chosen, training
  )
  counts = {"in the index": len(index), "asked about": len(evaluated)}
  how = {**(made or {}), "records": counts}
  result = dataclasses.replace(result, tables={**result.tables, "made": how})
  outputs.write(result, tally, Path(out_dir))
  finish(result)
  scores.close()
  return result


def _require_scorable(
  evaluated: Sequence[Sample], config: EvalConfig, split: str
) -> None:
  """Raises what would otherwise be found when all is asked."""
  if not any(record.classes for record in evaluated):
    raise ValueError(
      f"split {split!r}: none of {len(evaluated)} records has a target, and "
      "without a mask to find there is no Dice. Add records with masks"
      + (", or raise eval.limit." if config.limit else ".")
    )
  if "open" in config.protocols and any(r.description for r in evaluated):
    wording.require()


@dataclasses.dataclass(frozen=True)
class _World:
  """What the questions about one image take from all others."""

  config: EvalConfig
  siblings: Mapping[tuple[str, str], Sequence[str]]
  vocabulary: Sequence[str]
  modalities: Sequence[str]
  registry: Registry
  words: phrases.Phrases
  controlled: set[str]  # ids of records with controls and phrases
  most_targets: int


def _world(
  index: Sequence[Sample],
  evaluated: Sequence[Sample],
  config: EvalConfig,
  most_targets: int,
) -> _World:
  siblings = mixture.class_table(index)
  vocabulary = sorted({name for names in siblings.values() for name in names})
  registry = Registry.load(config.tasks or None)
  known = [
    tasks.Task(modality, name)
    for (_, modality), names in siblings.items()
    for name in names
  ]
  return _World(
    config,
    siblings,
    vocabulary,
    sorted({modality for _, modality in siblings}),
    registry,
    phrases.Phrases(registry, known, config.seed),
    draw(evaluated, config.control_limit, config.seed),
    most_targets,
  )


def _chunk(
  records: Iterable[Sample],
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
    scoring.score(
      waiting.pop(number), answer, world.registry, scored[number], gallery
    )
  if waiting:
    raise ValueError(
      f"{len(waiting)} of {len(waiting) + len(scored)} requests have no "
      "answer; each must have one."
    )
  for number in sorted(scored):
    tally.extend(scored[number])
  return tally


def _read_ahead(
  records: Iterable[Sample],
) -> Iterator[tuple[Sample, futures.Future[Triplet]]]:
  """Records in order, read while those before them are asked and scored."""
  pool = futures.ThreadPoolExecutor(AHEAD)
  under_way: collections.deque[tuple[Sample, futures.Future[Triplet]]]
  under_way = collections.deque()
  try:
    for record in records:
      under_way.append((record, pool.submit(record.load)))
      if len(under_way) > AHEAD:
        yield under_way.popleft()
    yield from under_way
  finally:
    pool.shutdown(cancel_futures=True)


def _stream(
  records: Iterable[Sample], world: _World, tally: Tally
) -> Iterator[Ask]:
  """All requests, and few records in memory at a time."""
  for record, reading in _read_ahead(records):
    try:
      triplet = reading.result()
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
      modalities=world.modalities,
      words=world.words,
      registry=world.registry,
      controls=record.id in world.controlled,
      most=world.most_targets,
    )


def _gallery(
  evaluated: Sequence[Sample], config: EvalConfig
) -> overlays.Gallery:
  """Returns where pictures are kept; nothing in it yet."""
  return overlays.Gallery(
    _examples(evaluated, config.gallery, config.seed),
    config.worst,
    draw(evaluated, overlays.CANDIDATES, config.seed),
  )


def _examples(evaluated: Sequence[Sample], number: int, seed: int) -> set[str]:
  """Returns the ids of `number` records of each modality, drawn by seed."""
  groups: dict[str, list[Sample]] = {}
  for record in evaluated:
    groups.setdefault(record.modality, []).append(record)
  if not number:
    return set()
  return {id for group in groups.values() for id in draw(group, number, seed)}
