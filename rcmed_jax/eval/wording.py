"""How near generated descriptions are to their references, by shared words.

  BLEU   of the whole split, as sacrebleu computes it: n-grams of 1 to 4 words
         pooled over all texts, brevity penalty, its own tokens ("13a")
  ROUGE  1, 2 and L, the mean over texts of the F1 of shared words, pairs of
         words and the longest common order of words, as rouge-score computes
         it, without stemming

Both are of 0..1 here; sacrebleu itself prints 100 times as much. They count
words and know no medicine: "no effusion" and "effusion" share half.
"""

from collections.abc import Sequence
import dataclasses
import importlib
import math
from typing import Any

_LIBRARIES = _BLEU, _ROUGE = "sacrebleu.metrics", "rouge_score.rouge_scorer"
ROUGES = ("rouge1", "rouge2", "rougeL")


@dataclasses.dataclass(frozen=True, slots=True)
class Wording:
  """A split's descriptions against their references, all scores 0..1."""

  texts: int
  bleu: float
  rouge1: float
  rouge2: float
  rougeL: float
  signature: str  # of sacrebleu: what its number was computed with


def compare(texts: Sequence[str], references: Sequence[str]) -> Wording:
  """Returns BLEU and ROUGE of descriptions, one reference each.

  Args:
    texts: as generated, without markers such as [SEG].
    references: in the same order.

  Raises:
    ValueError: no text, not one reference each, or an empty reference.
    NotImplementedError: sacrebleu or rouge-score is not installed.

  Source: Papineni et al., ACL 2002; Post, WMT 2018; Lin, ACL Workshops 2004.
  """
  if not texts or len(texts) != len(references):
    raise ValueError(
      f"Expected at least one text and one reference each, received "
      f"{len(texts)} and {len(references)}."
    )
  empty = sum(not reference.strip() for reference in references)
  if empty:
    raise ValueError(
      f"{empty} of {len(references)} references are empty; leave out images "
      "without a description."
    )
  bleu = _library(_BLEU).BLEU()
  scorer = _library(_ROUGE).RougeScorer(ROUGES)
  rows = [
    scorer.score(reference, text)
    for text, reference in zip(texts, references, strict=True)
  ]
  pooled = bleu.corpus_score(list(texts), [list(references)])
  return Wording(
    texts=len(texts),
    bleu=pooled.score / 100,
    **{
      name: math.fsum(row[name].fmeasure for row in rows) / len(rows)
      for name in ROUGES
    },
    signature=str(bleu.get_signature()),
  )


def require() -> None:
  """Raises NotImplementedError where `compare` would, for want of a library."""
  for name in _LIBRARIES:
    _library(name)


def _library(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    raise NotImplementedError(
      "scores of descriptions need sacrebleu and rouge-score; "
      "`pip install rcmed-jax[wording]` brings them."
    ) from error
