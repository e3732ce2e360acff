"""What `gpu.py` measures on either side: sizes, batches, time, rows."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import statistics
import time
from typing import Any

from rcmed_jax.model import config as configs
from rcmed_jax.model import flops, presets

PRODUCT = 8192  # side of the square matrices that show the card's own ceiling
TRAINABLE = "release"  # of the optimizer, as in configs/pretrain_7b.py
ROUNDS = 5  # to take the median of

Row = dict[str, Any]
Emit = Callable[[Row], None]


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The model, and what it is given.

  Attributes:
    model: as configs/pretrain_7b.py has it.
    text: tokens of a row, the image's placeholder among them; the best case of
      the first is repeated with the others.
    targets: masks of a row; that configuration holds a place for eight.
    mask_size: of the references.
    new: tokens decoded in one call.
    train: (what a layer keeps for its backward pass, rows) to try in turn; by
      rising need of memory, so that each shows its own peak.
    answer: rows to try of what answers.
    product: of PRODUCT.
  """

  model: configs.ModelConfig
  text: tuple[int, ...] = (200, 513)
  targets: int = 8
  mask_size: int = 256
  new: int = 32
  train: tuple[tuple[str, int], ...] = (
    ("full", 8),
    ("dots", 4),
    ("dots", 8),
    ("dots", 12),
    ("dots", 16),
    ("full", 16),
    ("full", 32),
  )
  answer: tuple[int, ...] = (1, 8, 16, 32)
  product: int = PRODUCT


def sizes(toy: bool) -> Sizes:
  """Full size, or the same organs at their smallest."""
  if not toy:
    return Sizes(presets.SYRE_7B)
  model = dataclasses.replace(
    presets.SYRE_7B,
    image=configs.ImageEncoderConfig(
      image_size=64,
      patch_size=16,
      width=32,
      depth=2,
      heads=2,
      mlp_ratio=2.0,
      window=3,
      global_blocks=(1,),
    ),
    language=configs.LanguageConfig(
      vocabulary=64, width=32, depth=2, heads=2, hidden=48
    ),
    decoder=configs.MaskDecoderConfig(width=16, heads=2, hidden=32),
    lora=configs.LoraConfig(rank=2),
  )
  return Sizes(
    model,
    text=(12, 20),
    targets=2,
    mask_size=16,
    new=3,
    train=(("full", 1), ("dots", 2)),
    answer=(2,),
    product=64,
  )


class Clock:
  """Seconds that a run may take; no case begins that would not end in them.

  Args:
    seconds: from now on.
    now: tells the time.
  """

  def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
    self._now, self._end, self._last = now, now() + seconds, 0.0

  def cases(self, given: Sequence[Any]) -> Iterator[Any]:
    """Those for which there is time, were each to last like the one before."""
    for case in given:
      start = self._now()
      if start + 1.2 * self._last > self._end:
        return
      yield case
      self._last = self._now() - start


def seconds(run: Callable[[], Any], wait: Callable[[Any], Any]) -> float:
  """The median of calls that are waited for, after one more."""
  wait(run())
  found = []
  for _ in range(ROUNDS):
    start = time.perf_counter()
    wait(run())
    found.append(time.perf_counter() - start)
  return statistics.median(found)


def speed(
  part: str, took: float, rows: int, text: int, given: Sizes, ceiling: float
) -> Row:
  """What a case's seconds mean.

  Args:
    part: "train", "evaluate", "prefill" or "decode".
    took: seconds a call; of "decode", of `given.new` tokens a row.
    rows: in the batch.
    text: tokens of each.
    given: sizes.
    ceiling: TFLOP/s of a large product.
  """
  config, calls = given.model, given.new if part == "decode" else 1
  own = {
    "train": lambda: flops.train(config, text, given.targets, TRAINABLE)[0],
    "evaluate": lambda: forward(config, text, given.targets),
    "prefill": lambda: flops.prefill(config, text),
    "decode": lambda: flops.decode(config, slots(given, text)),
  }[part]()
  tflops = own * rows * calls / took / 1e12
  return {
    "rows": rows,
    "text": text,
    "ms": took * 1e3 / calls,
    "per_s": rows * calls / took,
    "tflop_each": own / 1e12,
    "tflops": tflops,
    "share": tflops / ceiling,
  }


def forward(config: configs.ModelConfig, text: int, targets: int) -> float:
  """Operations from an image and its whole answer to masks, without logits."""
  parts = flops.forward(config, text, targets)
  return sum(parts.values()) - parts["head"]


def slots(given: Sizes, text: int) -> int:
  """Positions of a cache that holds a prompt and its answer."""
  return flops.sequence(given.model, text) + given.new


def sweep(
  cases: Sequence[tuple[Any, int]],
  measure: Callable[[Any, int], Row],
  emit: Emit,
  clock: Clock,
) -> tuple[Any, int] | None:
  """Measures (setting, rows) in turn; the fastest of them.

  After a case that fails, by memory or otherwise, larger batches of the same
  setting are left out.
  """
  failed, best, fastest = set(), None, 0.0
  for setting, rows in clock.cases(cases):
    if setting in failed:
      continue
    row = measure(setting, rows)
    emit(row)
    if "failed" in row:
      failed.add(setting)
    elif row["per_s"] > fastest:
      best, fastest = (setting, rows), row["per_s"]
  return best


def reason(error: Exception) -> str:
  """Why a case has no numbers, in one line."""
  text = str(error).strip() or repr(error)
  found = f"{type(error).__name__}: {text.splitlines()[0][:160]}"
  low = text.lower()
  if "resource_exhausted" in low or "out of memory" in low:
    return f"out of memory ({found})"
  return found
