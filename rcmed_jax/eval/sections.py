"""The sections of the report, each from a summary to a piece of HTML.

Every text that comes from data (class names, answers, paths) is escaped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rcmed_jax.eval import charts, sections_trust, tables
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
  records = summary.tables["made"]["records"]
  asked, there = records["asked about"], records["in the index"]
  drawn = f"a draw of {asked} of {there} records, " if asked < there else ""
  return (
    f"Split {summary.split}: {drawn}{summary.images} images, {summary.masks} "
    f"masks, {summary.tasks} tasks (modality × class), "
    f"{len(summary.quarantine)} quarantined."
  )


def tiles(summary: Summary) -> str:
  """Returns the headline numbers, each with what it means."""
  macro = summary.tables["macro"]
  there = summary.tables["presence"]
  found = summary.tables["recognition"]
  if found:
    named = f"{found['tp']} of {found['tp'] + found['fn']} named"
    found = f"{named}, {found['fp']} wrong"
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
      found,
      "Classes named unasked, from an open question: right over right, wrong "
      "and missed together.",
    ),
    (
      "Absent rejected",
      summary.absent,
      _of(there["rejected_absent"], there["asked_absent"]),
      "Asked for a class that the image lacks, the model says so. Higher is "
      "better.",
    ),
    (
      "False rejections",
      summary.false_rejection,
      _of(there["rejected_present"], there["asked_present"]),
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
    + sections_trust.external(summary)
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
    ("Dice of all reference masks, 0 where not named", found["dice"]),
    ("Dice of the masks whose class was named", found["dice_named"]),
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
    + tables.pairs(["Measure", "Value"], measures)
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
  tasks = sorted(
    summary.tables["presence_by_task"],
    key=lambda row: (row["modality"].lower(), row["class"].lower()),
  )
  heads = ["Absent", "Rightly rejected", "Present", "Falsely rejected"]
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
    + tables.plain(
      ["Modality", *heads],
      [(name, *_asked(row)) for name, row in modalities],
      total=("All", *_asked(table)),
    )
    + tables.pairs(["Present against absent", "Value"], found)
    + (_presence_by_task(heads, tasks) if tasks else "")
  )


def _presence_by_task(
  heads: Sequence[str], tasks: Sequence[Mapping[str, Any]]
) -> str:
  return tables.fold(
    f"Each of {len(tasks)} tasks",
    tables.plain(
      ["Modality", "Class", *heads],
      [(row["modality"], row["class"], *_asked(row)) for row in tasks],
    ),
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
  return (
    tables.lead(
      f"Records that could not be read: {len(rows)}. They are in no average, "
      "and none was replaced."
    )
    + tables.plain(["Record", "Field", "Reason"], rows[: tables.LISTED])
    + tables.more(len(rows), f"quarantine--{summary.split}.jsonl")
  )


def made(summary: Summary) -> str:
  """Returns how the answers and numbers were made: all that was told."""
  rows = [
    *_flat(summary.tables["made"]),
    *_flat({"evaluation": summary.tables["config"]}),
  ]
  return tables.lead(
    "What answered, to what, and how it was asked. The same is in "
    f"summary--{summary.split}.json."
  ) + tables.pairs(["What", "Value"], rows)


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


def _flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
  """Returns ("weights, step", "300") and the like of values within values."""
  rows = []
  for name, value in values.items():
    title = f"{above}{name}"
    if isinstance(value, Mapping):
      rows += _flat(value, f"{title}, ")
    else:
      rows.append((title, _written(value)))
  return rows


def _written(value: object) -> str:
  """Returns a setting as its reader would write it."""
  if value is None or value in ("", [], ()):
    return "none"
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, list | tuple):
    return ", ".join(map(str, value))
  return str(value)


def _of(part: int, whole: int) -> str:
  """Returns "3 of 4"; nothing where nothing was asked."""
  return f"{part} of {whole}" if whole else ""


def _asked(row: Mapping[str, Any]) -> tuple[tables.Cell, ...]:
  """Returns the cells of present and absent classes."""
  return (
    row["asked_absent"],
    row["absent_rejection"],
    row["asked_present"],
    row["false_rejection"],
  )


def _pairs(rows: Mapping[str, object]) -> str:
  body = "".join(
    f"<dt>{tables.cell(name)}</dt><dd>{tables.cell(value)}</dd>"
    for name, value in rows.items()
  )
  return f'<dl class="pairs">{body}</dl>'
