"""The sections of the report, each from a summary to a piece of HTML.

Every text that comes from data (class names, answers, paths) is escaped.
"""

from collections.abc import Mapping
from typing import Any

from rcmed_jax.eval import cards, charts, sections_trust, tables
from rcmed_jax.eval.summary import Summary

CONFUSIONS = 12  # rows shown

# What each control does and shows, in the order of the report.
CONTROLS = {
  "wrong_name": (
    "Wrong class name",
    "The question names a class that the image lacks; the mask that comes "
    "back is scored against a class that is there. A model that listens "
    "loses its Dice; one that marks the most salient object, whatever the "
    "words say, keeps it.",
  ),
  "noise": (
    "Noise image",
    "The same question over pure noise. A model that looks claims nothing "
    "with confidence; one that echoes the question claims everything.",
  ),
  "shuffled_text": (
    "Shuffled words",
    "The same question with its words in random order. The drop tells how "
    "much hangs on the sentence, beyond the words in it.",
  ),
  "wrong_modality": (
    "Wrong modality",
    "The same question with the name of another modality. A model that looks "
    "keeps its Dice and names the modality that it sees; one that echoes the "
    "question names the question's.",
  ),
}


def subtitle(summary: Summary) -> str:
  """Returns the line under the title."""
  return (
    f"Split {summary.split}: {summary.images} images, {summary.masks} masks, "
    f"{summary.tasks} tasks (modality × class), "
    f"{len(summary.quarantine)} quarantined."
  )


def tiles(summary: Summary) -> str:
  """Returns the headline numbers, each with what it means."""
  macro = summary.tables["macro"]
  there = summary.tables["presence"]
  found = summary.tables["recognition"]
  named = found and f"{found['tp']} of {found['tp'] + found['fn']} named"
  rows = (
    (
      "Dice",
      summary.dice,
      tables.interval(macro["dice_low"], macro["dice_high"]),
      "Overlap of mask and reference, 1 is perfect; mean over tasks, so that "
      "rare classes count. A target not returned counts 0.",
    ),
    (
      "IoU",
      summary.iou,
      f"pooled over pixels {summary.tables['class_iou']:.3f}",
      "Shared pixels over the pixels of either mask; mean over tasks. "
      "Stricter than Dice.",
    ),
    (
      "Recognition",
      summary.recognition,
      found and f"{named}, {found['fp']} wrong",
      "Classes named unasked, from an open question: right over right, wrong "
      "and missed together.",
    ),
    (
      "Absent rejected",
      summary.absent,
      f"{there['rejected_absent']} of {there['asked_absent']}",
      "Asked for a class that the image lacks, the model says so. Higher is "
      "better.",
    ),
    (
      "False rejections",
      summary.false_rejection,
      f"{there['rejected_present']} of {there['asked_present']}",
      "Asked alone, as absent ones are, for a class that is there, the model "
      "denies it. Lower is better.",
    ),
  )
  body = "".join(
    f'<div class="tile"><h2>{name}</h2><strong>{tables.cell(value)}</strong>'
    f"<small>{detail or 'not asked'}</small><p>{meaning}</p></div>"
    for name, value, detail, meaning in rows
  )
  return f'<div class="tiles">{body}</div>'


def examples(summary: Summary) -> str:
  """Returns pictures of a few images of each modality."""
  if not summary.examples:
    return ""
  return tables.lead(
    "Images of each modality, drawn by seed and not by score. The white line "
    "in the prediction is the reference. Select a picture to enlarge it."
  ) + cards.cards(summary.examples)


def lowest(summary: Summary) -> str:
  """Returns pictures of the images with the lowest Dice."""
  if not summary.lowest:
    return ""
  return tables.lead(
    "The images with the lowest mean Dice over their targets, worst first."
  ) + cards.cards(summary.lowest)


def averages(summary: Summary) -> str:
  """Returns the averages by modality, task, class and dataset."""
  numbers = summary.tables

  def group(head: str, table: str) -> str:
    return tables.scores(
      [head], {(k,): row for k, row in numbers[table].items()}
    )

  tasks = {(row["modality"], row["class"]): row for row in numbers["by_task"]}
  dice = charts.histogram("Masks by Dice", numbers["dice_histogram"])
  confidence = charts.histogram(
    "Masks by confidence, 0 where rejected", numbers["confidence_histogram"]
  )
  return (
    tables.lead(
      "Mean Dice over masks with its 95% interval; select a heading to sort. "
      "Pooled IoU weighs masks by their size. NSD is the share of the surface "
      "within the task's tolerance, HD95 the 95th percentile of its distance."
    )
    + f'<div class="charts">{dice}{confidence}</div>'
    + f"<h3>By modality</h3>{group('Modality', 'by_modality')}"
    + f"<h3>By task</h3>{tables.scores(['Modality', 'Class'], tasks)}"
    + "<h3>Other groups</h3>"
    + tables.fold("By class", group("Class", "by_class"))
    + tables.fold("By dataset", group("Dataset", "by_dataset"))
    + sections_trust.groups(summary)
  )


def recognition(summary: Summary) -> str:
  """Returns what open questions brought out."""
  found = summary.tables["recognition"]
  if found is None:
    return ""
  measures = [
    ("Right over right, wrong and missed", found["accuracy"]),
    ("Images with the exact set of classes", found["exact"]),
    ("F1, mean over classes", found["macro_f1"]),
    ("Modality named right", found["modality"]),
    ("Dice of the masks that came along", found["dice"]),
  ]
  confusions = [
    (row["missed"], row["said"] or "nothing", row["images"])
    for row in found["confusions"][:CONFUSIONS]
  ] or [("no class", "", 0)]
  classes = [
    (name, row["tp"], row["fp"], row["fn"])
    for name, row in found["classes"].items()
  ]
  return (
    tables.lead(
      "The question asks for a description and names neither class nor "
      f"modality; {found['images']} images."
    )
    + '<div class="charts">'
    + tables.plain(["Measure", "Value"], measures)
    + tables.plain(["Missed", "Said instead", "Images"], confusions)
    + "</div>"
    + tables.fold(
      f"Each of {len(classes)} classes",
      tables.plain(["Class", "Right", "Wrong", "Missed"], classes),
    )
  )


def presence(summary: Summary) -> str:
  """Returns how well the model tells present from absent."""
  table = summary.tables["presence"]
  modalities = sorted(table["by_modality"].items(), key=lambda m: m[0].lower())
  rows = [
    (
      name,
      row["asked_absent"],
      row["absent_rejection"],
      row["asked_present"],
      row["false_rejection"],
    )
    for name, row in [*modalities, ("All", table)]
  ]
  heads = [
    "Modality",
    "Absent",
    "Rightly rejected",
    "Present",
    "Falsely rejected",
  ]
  found = [("Area under the ROC curve of confidences", table["auroc"])]
  if table["at_recall"]:
    found += _at_recall(table["at_recall"])
  return (
    tables.lead(
      "Absent classes come from the same dataset and modality and are asked "
      "alone; they should be rejected. One class of the image, asked alone in "
      "the same words, should not. Any mask counts as a claim, whatever its "
      "name."
    )
    + tables.plain(heads, rows)
    + tables.plain(["Present against absent", "Value"], found)
  )


def _at_recall(at: Mapping[str, Any]) -> list[tuple[str, float | None]]:
  """Returns false alarms at a threshold, or why there is none."""
  if at["threshold"] is None:
    return [
      (
        f"False alarms at a recall of {at['target']:g}: the model denies too "
        "many; the highest recall that it reaches",
        at["reachable"],
      )
    ]
  chosen = "threshold chosen on these rows, which flatters"
  if at["chosen_on"]:
    chosen = f"threshold of split {at['chosen_on']}"
  return [
    (
      f"False alarms at a recall of {at['recall']:.3f}, confidence ≥ "
      f"{at['threshold']:.3f}, {chosen}",
      at["false_alarm"],
    )
  ]


def controls(summary: Summary) -> str:
  """Returns what is left when the question or the image is spoilt."""
  found = summary.tables["controls"]
  if not found:
    return ""
  body = "".join(
    f'<div class="tile control"><h2>{title}</h2><p>{meaning}</p>'
    f"{_control(found[kind])}</div>"
    for kind, (title, meaning) in CONTROLS.items()
    if kind in found
  )
  return (
    tables.lead(
      "What is left when the question or the image is spoilt, compared with "
      "the same targets asked properly."
    )
    + f'<div class="tiles controls">{body}</div>'
  )


def quarantine(summary: Summary) -> str:
  """Returns the records that could not be read."""
  if not summary.quarantine:
    return tables.lead("Every record could be read.")
  rows = [(row.record, row.field, row.reason) for row in summary.quarantine]
  return tables.lead(
    f"Records that could not be read: {len(rows)}. They are in no average, "
    "and none was replaced."
  ) + tables.plain(["Record", "Field", "Reason"], rows)


def facts(groups: Mapping[str, Mapping[str, object]]) -> str:
  """Returns what the run was: settings, versions, counts."""
  if not groups:
    return ""
  body = "".join(
    f"<details open><summary>{tables.cell(heading)}</summary>"
    f"{_pairs(rows)}</details>"
    for heading, rows in groups.items()
  )
  return f'<div class="facts">{body}</div>'


def _control(row: Mapping[str, Any]) -> str:
  """Returns the numbers of one control."""
  if "drop" not in row:
    return _pairs(
      {
        "Targets asked": row["targets"],
        "Claimed as present": row["claimed"],
        f"Claimed with confidence ≥ {row['threshold']:g}": row[
          "confident_share"
        ],
        "Mean confidence": row["mean_confidence"],
      }
    )
  numbers = {
    "Targets asked": row["targets"],
    "Claimed as present": row["claimed"],
    "Dice, asked properly": row["named_dice"],
    "Dice, control": row["control_dice"],
    "Drop": row["drop"],
  }
  if "said_true" in row:
    numbers["Answers that name the true modality"] = row["said_true"]
    numbers["Answers that name the question's"] = row["said_asked"]
  if row["drop_low"] is not None:
    numbers["95%"] = tables.interval(row["drop_low"], row["drop_high"])
  return _pairs(numbers)


def _pairs(rows: Mapping[str, object]) -> str:
  body = "".join(
    f"<dt>{tables.cell(name)}</dt><dd>{tables.cell(value)}</dd>"
    for name, value in rows.items()
  )
  return f'<dl class="pairs">{body}</dl>'
