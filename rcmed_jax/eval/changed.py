"""What is left of the scores when the question or the image is changed."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from rcmed_jax.eval import metrics, resampling
from rcmed_jax.eval.metrics import share
from rcmed_jax.eval.protocols import EvalConfig
from rcmed_jax.eval.rows import PLAIN, Control, Phrase, Tally


def controls(tally: Tally, config: EvalConfig) -> dict[str, Any]:
  """Kind of control -> what it leaves of the named scores."""
  kinds: dict[str, list[Control]] = collections.defaultdict(list)
  for row in tally.controls:
    kinds[row.kind].append(row)
  named = {(s.record, s.name): s.counts.dice for s in tally.masks}
  return {
    kind: _noise(rows, config)
    if kind == "noise"
    else _paired(rows, named, config)
    | (_modalities(rows) if kind == "wrong_modality" else {})
    for kind, rows in sorted(kinds.items())
  }


def _paired(
  rows: Sequence[Control],
  named: Mapping[tuple[str, str], float],
  config: EvalConfig,
) -> dict[str, Any]:
  """Compares a control with the named Dice of the same targets."""
  dice = [row.dice or 0.0 for row in rows]
  normal = [named[row.record, row.target] for row in rows]
  drops = [before - after for before, after in zip(normal, dice, strict=True)]
  low, high = _interval(drops, rows, config)
  return {
    "targets": len(rows),
    "images": len({row.record for row in rows}),
    "named_dice": metrics.mean(normal),
    "control_dice": metrics.mean(dice),
    "drop": metrics.mean(drops),
    "drop_low": low,
    "drop_high": high,
    "claimed": share(sum(row.present for row in rows), len(rows)),
  }


def _modalities(rows: Sequence[Control]) -> dict[str, Any]:
  """Counts answers that name the image's modality, and the question's."""
  answers = {row.record: row for row in rows}.values()
  said = [(row.said_modality or "").lower() for row in answers]
  pairs = list(zip(said, answers, strict=True))
  return {
    "said_true": share(
      sum(word == row.modality.lower() for word, row in pairs), len(pairs)
    ),
    "said_asked": share(
      sum(word == row.asked_modality.lower() for word, row in pairs), len(pairs)
    ),
  }


def _noise(rows: Sequence[Control], config: EvalConfig) -> dict[str, Any]:
  """Counts what is still claimed where there is nothing to see."""
  confident = [
    row.present and row.confidence >= config.confident for row in rows
  ]
  return {
    "targets": len(rows),
    "images": len({row.record for row in rows}),
    "claimed": share(sum(row.present for row in rows), len(rows)),
    "threshold": config.confident,
    "confident": sum(confident),
    "confident_share": share(sum(confident), len(rows)),
    "mean_confidence": metrics.mean(row.confidence for row in rows),
  }


def phrases(tally: Tally, config: EvalConfig) -> dict[str, Any]:
  """Kind of words -> Dice with them and with the class's own name."""
  plain = {
    (row.record, row.name): row for row in tally.phrases if row.kind == PLAIN
  }
  kinds: dict[str, list[Phrase]] = collections.defaultdict(list)
  for row in tally.phrases:
    if row.kind != PLAIN:
      kinds[row.kind].append(row)
  table = {}
  for kind, rows in sorted(kinds.items()):
    own = [plain[row.record, row.name] for row in rows]
    drops = [a.dice - b.dice for a, b in zip(own, rows, strict=True)]
    low, high = _interval(drops, rows, config)
    table[kind] = {
      "targets": len(rows),
      "name_dice": metrics.mean(row.dice for row in own),
      "phrase_dice": metrics.mean(row.dice for row in rows),
      "drop": metrics.mean(drops),
      "drop_low": low,
      "drop_high": high,
      "name_claimed": share(sum(row.present for row in own), len(own)),
      "claimed": share(sum(row.present for row in rows), len(rows)),
      "example": f"{rows[0].name} -> {rows[0].phrase}",
    }
  return table


def _interval(
  drops: Sequence[float],
  rows: Sequence[Control | Phrase],
  config: EvalConfig,
) -> resampling.Interval:
  """Returns the 95% interval of the mean drop, over images."""
  return resampling.resample(
    drops,
    [row.record for row in rows],
    [""] * len(rows),
    draws=config.bootstrap,
    seed=config.seed,
  ).macro()
