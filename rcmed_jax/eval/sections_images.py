"""Sections of the report that show images: examples, by score, failures."""

from typing import Any

from rcmed_jax.eval import cards, tables
from rcmed_jax.eval.failures import FACTOR, MASKS
from rcmed_jax.eval.overlays import Sample
from rcmed_jax.eval.summary import Summary

# How the groups of `failures.REASONS` are called, and what they are.
GROUPS = {
  "missed": (
    "Missed entirely",
    "the answer denies the class or is empty",
  ),
  "misplaced": ("Wrong place", "mask and reference share no pixel"),
  "too_large": (
    "Too large",
    f"{FACTOR:g} times as many pixels, or more",
  ),
  "too_small": (
    "Too small",
    f"{FACTOR:g} times as many would be right, or more",
  ),
  "shifted": ("Partly beside it", "about the right size, mostly elsewhere"),
  "wrong_name": (
    "Wrong name",
    "asked openly, the answer leaves the class out and names one that is not "
    "there",
  ),
  "false_alarm": ("False alarm", "a class that the image lacks is claimed"),
}


def examples(summary: Summary) -> str:
  """Returns pictures of a few images of each modality."""
  if not summary.examples:
    return ""
  return tables.lead(
    "Images of each modality, drawn by seed and not by score. The white line "
    "in the prediction is the reference. Select a picture to enlarge it."
  ) + cards.cards(summary.examples)


def by_score(summary: Summary) -> str:
  """Returns pictures of the images of highest, median and lowest Dice."""
  groups = (
    ("Best", "Highest first.", summary.highest),
    (
      "Median",
      "Nearest to the median of all images, of those drawn by seed.",
      summary.median,
    ),
    ("Worst", "Lowest first.", summary.lowest),
  )
  if not any(samples for _, _, samples in groups):
    return ""
  return tables.lead("Images by the mean Dice over their targets.") + "".join(
    f"<h3>{title}</h3>{tables.lead(text)}{cards.cards(samples)}"
    for title, text, samples in groups
    if samples
  )


def failures(summary: Summary) -> str:
  """Returns why masks failed, with one picture a group, and by task."""
  found = summary.tables["failures"]
  groups = found["reasons"]
  rows = [
    (title, meaning, *_counts(groups[name]), groups[name]["tasks"])
    for name, (title, meaning) in GROUPS.items()
    if groups[name]["asked"]
  ]
  failed = sum(groups[name]["count"] for name in MASKS)
  shown = {n: summary.failures[n] for n in GROUPS if n in summary.failures}
  return (
    tables.lead(
      f"Of {summary.masks} masks asked for by name {failed} have a Dice below "
      f"{found['below']:g}; each is in one group. Wrong names are counted over "
      "what open questions should have named, false alarms over absent classes "
      "asked."
    )
    + tables.plain(
      ["Group", "What it is", "Count", "Of", "Share", "Tasks"], rows
    )
    + _pictures(shown)
    + _tasks(found["by_task"], summary.split)
  )


def _pictures(shown: dict[str, Sample]) -> str:
  if not shown:
    return ""
  titles = (
    f"{GROUPS[name][0]}: {sample.classes[sample.reasons.index(name)]}"
    for name, sample in shown.items()
  )
  return "<h3>An example of each</h3>" + cards.cards(shown.values(), titles)


def _tasks(rows: list[dict[str, Any]], split: str) -> str:
  """Returns the groups by task, those with most cases first."""
  if not rows:
    return ""
  ranked = sorted(rows, key=lambda row: -row["count"])[: tables.LISTED]
  cells = [
    (
      GROUPS[row["reason"]][0],
      row["modality"],
      row["class"],
      *_counts(row),
      row["example"] + (f", said {row['said']}" if row["said"] else ""),
    )
    for row in ranked
  ]
  heads = ["Group", "Modality", "Class", "Count", "Of", "Share", "Example"]
  return tables.fold(
    f"By task: {len(rows)} rows",
    tables.plain(heads, cells)
    + tables.more(len(rows), f"summary--{split}.json"),
  )


def _counts(row: dict[str, Any]) -> tuple[int, int, float]:
  return row["count"], row["asked"], row["count"] / row["asked"]
