"""The drawing of a sweep: a row a cell, its mean, intervals and runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import html
import math

from rcmed_jax.eval.sweep_scores import Estimate

# In the drawing's own units; the page scales it.
WIDTH, ROW = 520, 42
SIDE, TOP, BOTTOM = 22, 4, 30
NAME, BAR, RUNS = 15, 27, 36  # heights in a row; names have the whole width
LONGEST = 48  # letters of a name that are shown, also where letters are large

# Least part of the frame between two ticks.
_TICKS = 5


def rows(
  title: str,
  estimates: Mapping[str, Estimate],
  *,
  zero: bool = False,
) -> str:
  """Returns a figure with one row for each cell, in their order.

  The thick bar is the interval over images, the thin line that over seeds, the
  dots below are the runs and the large one is their mean.

  Args:
    estimates: cell -> what is drawn.
    zero: the axis holds 0, marked by a line: for differences.
  """
  if not estimates:
    return ""
  low, high, step = _axis(estimates.values(), zero)
  bottom = TOP + ROW * len(estimates)

  def across(value: float) -> float:
    return SIDE + (value - low) / (high - low) * (WIDTH - 2 * SIDE)

  ticks = [
    low + place * step for place in range(round((high - low) / step) + 1)
  ]
  grid = "".join(
    f'<line class="grid" x1="{across(tick):.1f}" x2="{across(tick):.1f}" '
    f'y1="{TOP}" y2="{bottom}"/><text x="{across(tick):.1f}" '
    f'y="{bottom + 18}" text-anchor="middle">{_number(tick, step)}</text>'
    for tick in ticks
  )
  if zero:
    grid += (
      f'<line x1="{across(0):.1f}" x2="{across(0):.1f}" y1="{TOP}" '
      f'y2="{bottom}" stroke="var(--soft)"/>'
    )
  body = "".join(
    _row(cell, one, TOP + ROW * place, across)
    for place, (cell, one) in enumerate(estimates.items())
  )
  return (
    f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
    f'<svg viewBox="0 0 {WIDTH} {bottom + BOTTOM}" role="img" '
    f'aria-label="{html.escape(title)} by cell">{grid}{body}</svg></figure>'
  )


def _row(
  cell: str, one: Estimate, top: float, across: Callable[[float], float]
) -> str:
  y = top + BAR
  parts = [
    f'<text x="2" y="{top + NAME}">{html.escape(_short(cell))}</text>',
  ]
  if one.images_low is not None and one.images_high is not None:
    parts.append(
      f'<line x1="{across(one.images_low):.1f}" '
      f'x2="{across(one.images_high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
      'stroke="var(--accent)" stroke-width="9" stroke-opacity=".3"/>'
    )
  if one.seeds_low is not None and one.seeds_high is not None:
    parts.append(
      f'<line x1="{across(one.seeds_low):.1f}" '
      f'x2="{across(one.seeds_high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
      'stroke="var(--ink)" stroke-width="1.4"/>'
    )
  parts += [
    f'<circle cx="{across(value):.1f}" cy="{top + RUNS:.1f}" r="2.6" '
    f'fill="var(--line-1)"><title>seed {seed}: {value:.4f}</title></circle>'
    for seed, value in one.by_seed.items()
  ]
  parts.append(
    f'<circle cx="{across(one.mean):.1f}" cy="{y:.1f}" r="4.6" '
    f'fill="var(--accent)"><title>mean: {one.mean:.4f}</title></circle>'
  )
  return "".join(parts)


def _axis(
  estimates: Iterable[Estimate], zero: bool
) -> tuple[float, float, float]:
  """Returns the ends of the axis and the distance of its round ticks."""
  values: list[float] = [0.0] if zero else []
  for one in estimates:
    bounds: Sequence[float | None] = (
      *(one.images_low, one.images_high, one.seeds_low, one.seeds_high),
      *one.by_seed.values(),
    )
    values += [value for value in bounds if value is not None]
  low, high = min(values), max(values)
  span = (high - low) or 0.1
  step = 10 ** math.floor(math.log10(span / _TICKS))
  step *= next(part for part in (1, 2, 5, 10) if span / (step * part) <= _TICKS)
  low, high = math.floor(low / step) * step, math.ceil(high / step) * step
  return low, max(high, low + step), step


def _number(value: float, step: float) -> str:
  digits = max(0, -math.floor(math.log10(step) + 1e-9))
  return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0.0


def _short(name: str) -> str:
  return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
