"""A comparison in plain sentences that say no more than its numbers do."""

from rcmed_jax.eval.compare import Change, Comparison
from rcmed_jax.eval.resampling import FEWEST

# Images of the smallest task below which a caution is given. Intervals of fewer
# are right for values that scatter normally and too narrow where a few images
# differ by far more than the others: see tests/eval/resampling_test.py.
FEW_IMAGES = 30
# A difference in mean Dice below this is called small: half a point, by choice.
SMALL = 0.005


def sentences(
  result: Comparison, names: tuple[str, str] = ("A", "B")
) -> tuple[str, ...]:
  """Returns what a comparison shows, what it does not, and on what grounds.

  Args:
    names: of run A and run B.
  """
  if not _any_mask(result):
    return (
      f"{names[0]} and {names[1]} have the same Dice on every one of "
      f"{result.masks} masks.",
    )
  return (
    _headline(result, names),
    _micro(result, names),
    _tasks(result, names),
    _images(result, names),
    *_cautions(result, names),
  )


def direction(row: Change) -> int:
  """Returns 1 where B is shown to be higher, -1 lower, 0 neither."""
  if row.low is None or row.high is None:
    return 0
  return int(row.low > 0) - int(row.high < 0)


def signed(value: float) -> str:
  """Returns a difference with its sign: +0.012, -0.003, 0.000."""
  text = f"{value:+.3f}"
  return text[1:] if float(text) == 0 else text.replace("-", "−")


def _any_mask(result: Comparison) -> bool:
  """Whether a mask differs; by image, gains and losses may cancel."""
  return any(row.signs.better + row.signs.worse for row in result.tasks)


def _headline(result: Comparison, names: tuple[str, str]) -> str:
  row = result.macro
  shown = direction(row)
  numbers = f"{row.b:.3f} against {row.a:.3f}, {signed(row.difference)}"
  if row.low is None or row.high is None:
    return (
      f"Macro Dice, the mean over {len(result.tasks)} tasks, is {numbers}, "
      f"{names[1]} minus {names[0]}. Without an interval nothing is said of "
      "other images."
    )
  span = f"95% interval {signed(row.low)} to {signed(row.high)}"
  if not shown:
    return (
      f"No difference is shown in macro Dice, the mean over "
      f"{len(result.tasks)} tasks: {names[1]} has {numbers} ({span}). That is "
      "no proof that there is none: any difference within the interval fits "
      "these images."
    )
  higher = names[1] if shown > 0 else names[0]
  small = ""
  if abs(row.difference) < SMALL:
    small = " The difference is small; whether it matters is another question."
  return (
    f"{higher} scores higher in macro Dice, the mean over "
    f"{len(result.tasks)} tasks: {names[1]} has {numbers} ({span}).{small}"
  )


def _micro(result: Comparison, names: tuple[str, str]) -> str:
  row = result.micro
  text = (
    f"In micro Dice, the mean over {result.masks} masks, {names[1]} has "
    f"{row.b:.3f} against {row.a:.3f}, {signed(row.difference)}"
  )
  if row.low is None or row.high is None:
    return f"{text}."
  text += f" (95% interval {signed(row.low)} to {signed(row.high)})"
  macro, micro = direction(result.macro), direction(row)
  if macro * micro < 0:
    return (
      f"{text}: the other way. Which run is better depends on whether tasks or "
      "masks count alike."
    )
  if micro and not macro:
    return (
      f"{text}: here a difference is shown; tasks with many masks weigh more."
    )
  return f"{text}." if micro else f"{text}: no difference is shown."


def _tasks(result: Comparison, names: tuple[str, str]) -> str:
  win, tie, loss = (result.count(word) for word in ("win", "tie", "loss"))
  text = (
    f"By task, corrected for their number: {names[1]} is better in {win}, "
    f"worse in {loss}; in {tie} of {len(result.tasks)} no difference is shown."
  )
  if win and loss:
    text += " Neither run is better throughout."
  return text


def _images(result: Comparison, names: tuple[str, str]) -> str:
  found = result.signs
  p = "below 0.001" if found.p < 0.001 else f"{found.p:.3f}"
  return (
    f"By image: {names[1]} is higher on {found.better}, lower on "
    f"{found.worse}, equal on {found.equal} of {found.images} (Wilcoxon p "
    f"{p}, rank-biserial correlation {signed(found.rank_biserial)})."
  )


def _cautions(result: Comparison, names: tuple[str, str]) -> tuple[str, ...]:
  cautions = []
  smallest = min(result.tasks, key=lambda row: row.signs.images)
  images = smallest.signs.images
  if images < FEWEST:
    cautions.append(
      f"The smallest task, {smallest.task}, has {images} images. Below "
      f"{FEWEST} there is no interval of a task, nor of a mean over tasks that "
      "holds it."
    )
  elif images < FEW_IMAGES:
    cautions.append(
      f"The smallest task, {smallest.task}, has {images} images. That is few: "
      "where single images differ by far more than the others, its interval "
      "leaves 0 out more often than it promises."
    )
  cautions.append(
    "Images count as independent; where several are of one patient the "
    "intervals are too narrow. Two trained models are compared on these "
    "images: another seed of training, another hospital or use in patients "
    "may show something else."
  )
  return tuple(cautions)
