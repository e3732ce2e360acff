"""Drawings for the report, as inline SVG and HTML; colours live in its CSS."""

from collections.abc import Mapping, Sequence
import html
import math

import numpy as np

WIDTH, HEIGHT = 520, 240  # of a chart, in its own units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30  # margins for the axes' numbers
POINTS = 240  # at most, per line; longer series are averaged in runs
COLORS = 6  # line colours that the page's CSS defines, --line-0 and so on
LOG_RANGE = 30  # largest / smallest value above which the axis is logarithmic


def line_chart(
  title: str,
  series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  *,
  over: str,
  log: bool = False,
) -> str:
  """Returns a figure with one line per series over a shared x axis.

  Args:
    series: name -> (x, y) of one length, x ascending from 0 or later. Values
      that are not finite are left out.
    over: what x is, for who has the chart read out.
    log: draw values that span more than `LOG_RANGE` on a logarithmic axis.
  """
  lines = {name: _thin(*values) for name, values in series.items()}
  lines = {name: line for name, line in lines.items() if len(line[0])}
  if not lines:
    return ""
  x_all = np.concatenate([x for x, _ in lines.values()])
  y_all = np.concatenate([y for _, y in lines.values()])
  x_high = float(x_all.max())
  log = log and y_all.min() > 0 and y_all.max() / y_all.min() > LOG_RANGE
  y_ticks = (
    _log_ticks(y_all) if log else _ticks(min(0, y_all.min()), y_all.max())
  )
  height = np.log10 if log else np.asarray
  y_low, y_high = height(y_ticks[0]), height(y_ticks[-1])

  def across(x):
    return LEFT + x / (x_high or 1) * (WIDTH - LEFT - RIGHT)

  def down(y):
    part = (height(y) - y_low) / ((y_high - y_low) or 1)
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

  grid = "".join(
    f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
    f'y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>'
    f'<text x="{LEFT - 8}" y="{down(tick) + 4:.1f}" text-anchor="end">'
    f"{_short(tick)}</text>"
    for tick in y_ticks
  )
  steps = "".join(
    f'<text x="{across(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
    f"{_short(tick)}</text>"
    for tick in _ticks(0, x_high)
    if tick <= x_high
  )
  paths = "".join(
    _path(across(x), down(y), place)
    for place, (x, y) in enumerate(lines.values())
  )
  return (
    f'<figure class="chart"><figcaption>{html.escape(title)}'
    f"{' <small>log scale</small>' if log else ''}{_legend(lines)}"
    f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
    f'aria-label="{html.escape(f"{title}, over {over}")}">{grid}{steps}{paths}'
    "</svg></figure>"
  )


def histogram(title: str, counts: Sequence[int]) -> str:
  """Returns a figure of counts in equal bins of 0..1."""
  peak = max(*counts, 1)
  step = (WIDTH - LEFT - RIGHT) / len(counts)
  room = HEIGHT - TOP - BOTTOM
  bars = "".join(
    f'<rect class="column" x="{LEFT + place * step + 1:.1f}" '
    f'y="{HEIGHT - BOTTOM - room * number / peak:.1f}" width="{step - 2:.1f}" '
    f'height="{room * number / peak:.1f}" rx="2"><title>'
    f"{place / len(counts):.2f} to {(place + 1) / len(counts):.2f}: {number}"
    "</title></rect>"
    for place, number in enumerate(counts)
  )
  grid = "".join(
    f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" '
    f'y2="{y:.1f}"/><text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
    f"{number}</text>"
    for number, y in ((0, HEIGHT - BOTTOM), (peak, TOP))
  )
  labels = "".join(
    f'<text x="{LEFT + part * (WIDTH - LEFT - RIGHT):.1f}" y="{HEIGHT - 8}" '
    f'text-anchor="middle">{part:g}</text>'
    for part in (0, 0.25, 0.5, 0.75, 1)
  )
  return (
    f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
    f'aria-label="{html.escape(title)}">{grid}{bars}{labels}</svg></figure>'
  )


def bar(value: float, low: float | None, high: float | None) -> str:
  """Returns a bar of a value in 0..1 with its interval as a whisker."""
  whisker = ""
  if low is not None and high is not None:
    whisker = (
      f'<i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
    )
  fill = f'<b style="width:{100 * value:.1f}%"></b>'
  return f'<span class="bar">{fill}{whisker}</span>'


def _thin(
  x: Sequence[float], y: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the finite points, averaged in runs so that few remain."""
  x_N, y_N = np.array(x, np.float64), np.array(y, np.float64)
  finite = np.isfinite(x_N) & np.isfinite(y_N)
  x_N, y_N = x_N[finite], y_N[finite]
  if len(x_N) <= POINTS:
    return x_N, y_N
  x_thin, y_thin = (
    np.array([run.mean() for run in np.array_split(values, POINTS)])
    for values in (x_N, y_N)
  )
  return x_thin, y_thin


def _ticks(low: float, high: float) -> list[float]:
  """Returns round numbers, 1, 2 or 5 times a power of ten apart."""
  span = (high - low) or abs(high) or 1.0
  step = 10 ** math.floor(math.log10(span / 4))
  step *= next(
    factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5
  )
  first, last = math.floor(low / step), math.ceil(high / step)
  return [place * step for place in range(first, last + 1)]


def _log_ticks(values: np.ndarray) -> list[float]:
  low = math.floor(math.log10(values.min()))
  high = math.ceil(math.log10(values.max()))
  return [10.0**power for power in range(low, high + 1)]


def _short(value: float) -> str:
  """Returns a number in few characters: 0.05, 1500, 20k, 2e-4."""
  if abs(value) >= 10_000:
    return f"{value / 1000:g}k"
  if 0 < abs(value) < 0.001:
    return f"{value:.0e}".replace("e-0", "e-")
  return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _path(x: np.ndarray, y: np.ndarray, place: int) -> str:
  color = f"var(--line-{place % COLORS})"
  if len(x) == 1:
    return f'<circle cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="3" fill="{color}"/>'
  points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
  return f'<polyline class="line" stroke="{color}" points="{points}"/>'


def _legend(lines: Mapping[str, object]) -> str:
  if len(lines) == 1:
    return ""
  names = "".join(
    f'<span><i style="background:var(--line-{place % COLORS})"></i>'
    f"{html.escape(name)}</span>"
    for place, name in enumerate(lines)
  )
  return f'<span class="legend">{names}</span>'
