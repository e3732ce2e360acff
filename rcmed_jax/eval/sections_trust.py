"""Sections of the report on what to trust: confidences, words, instances."""

from collections.abc import Mapping
from typing import Any

from rcmed_jax.eval import charts, tables
from rcmed_jax.eval.summary import Summary

KINDS = {
  "synonym": "Synonym",
  "abbreviation": "Abbreviation",
  "order": "Word order",
  "number": "Singular or plural",
  "case": "Upper and lower case",
  "typo": "One wrong letter",
}
GROUPINGS = {
  "region": "By region of the body",
  "kind": "By kind of target",
  "cancer": "By type of cancer",
}


def calibration(summary: Summary) -> str:
  """Returns whether confidences are the IoU that they estimate."""
  found = summary.tables["calibration"]
  if found is None:
    return ""
  bins = [row for row in found["bins"] if row["count"]]
  x = [row["confidence"] for row in bins]
  reliability = charts.line_chart(
    "Mean IoU by mean confidence",
    {
      "found": (x, [row["outcome"] for row in bins]),
      "honest": ([0.0, 1.0], [0.0, 1.0]),
    },
    over="confidence",
  )
  curve = found["risk_coverage"]
  risk = charts.line_chart(
    "Risk by coverage",
    {
      "1 - IoU": (
        [row["coverage"] for row in curve],
        [row["risk"] for row in curve],
      )
    },
    over="share of masks taken",
  )
  measures = [
    ("Masks that answers hold", found["claims"]),
    ("Expected calibration error", found["ece"]),
    ("Brier score", found["brier"]),
    ("Area under risk-coverage", found["aurc"]),
    ("Of it, above the best order", found["excess_aurc"]),
  ]
  return (
    tables.lead(
      "A confidence estimates the IoU of its mask, 0 where the class is not in "
      "the image. Honest ones lie on the diagonal; risk falls where only "
      "confident masks are taken."
    )
    + f'<div class="charts">{reliability}{risk}'
    + tables.pairs(["Measure", "Value"], measures)
    + "</div>"
  )


def phrases(summary: Summary) -> str:
  """Returns what other words for a class change."""
  found = summary.tables["phrases"]
  if not found:
    return ""
  rows = [
    (
      KINDS[kind],
      row["example"],
      row["targets"],
      row["name_dice"],
      row["phrase_dice"],
      row["drop"],
      (row["drop_low"], row["drop_high"]),
      row["claimed"],
    )
    for kind, row in found.items()
  ]
  heads = [
    *("Words", "Example", "Targets", "Dice, own name", "Dice, other words"),
    *("Drop", "95%", "Claimed"),
  ]
  return tables.lead(
    "One class of an image asked alone, by its name and in other words in the "
    "same question."
  ) + tables.plain(heads, rows)


def instances(summary: Summary) -> str:
  """Returns tasks that are counted one by one."""
  found = summary.tables["instances"]
  if not found:
    return ""
  rows = [
    (
      row["modality"],
      row["class"],
      row["reference"],
      row["predicted"],
      row["aji"],
      row["pq"],
      row["f1"]["0.5"],
      *(row["ap"][least] for least in ("0.5", "0.75", "0.9")),
    )
    for row in found
  ]
  heads = [
    *("Modality", "Class", "Reference", "Predicted", "AJI", "PQ", "F1@0.5"),
    *("AP@0.5", "AP@0.75", "AP@0.9"),
  ]
  return tables.lead(
    "Connected parts of masks as instances, pooled over images; those that "
    "touch count as one, but in a reference of several masks of the class. AP "
    "is TP / (TP + FP + FN)."
  ) + tables.plain(heads, rows)


def boxes(summary: Summary) -> str:
  """Returns how well the boxes around masks are found."""
  found = summary.tables["box_ap"]
  return tables.lead(
    "Boxes around masks, ranked by confidence, claims of absent classes "
    "included. AP as in COCO: the mean over IoU 0.50 to 0.95, then over tasks."
  ) + tables.pairs(
    ["Measure", "Value"],
    [
      ("AP", found["ap"]),
      ("AP at IoU 0.50", found["ap50"]),
      ("AP at IoU 0.75", found["ap75"]),
      ("Box IoU, mean over masks", summary.tables["box_iou"]),
      ("Boxes predicted", found["preds"]),
      ("Boxes of references", found["refs"]),
    ],
  )


def descriptions(summary: Summary) -> str:
  """Returns how near descriptions are to the data's."""
  found = summary.tables["wording"]
  if found is None:
    return ""
  return tables.lead(
    f"{found['texts']} generated descriptions against the data's, by shared "
    'words, which know no medicine: "effusion" and "no effusion" share '
    f"half. All are 0 to 1. sacrebleu: {found['signature']}"
  ) + tables.pairs(
    ["Measure", "Value"],
    [
      ("BLEU", found["bleu"]),
      ("ROUGE-1", found["rouge1"]),
      ("ROUGE-2", found["rouge2"]),
      ("ROUGE-L", found["rougeL"]),
    ],
  )


def groups(summary: Summary) -> str:
  """Returns means over tasks that belong together."""
  return _groups(summary.tables["by_group"])


def external(summary: Summary) -> str:
  """Returns the scores of data sets that the weights never met."""
  found = summary.tables["external"]
  if found is None:
    return ""
  interval = tables.interval(found["dice_low"], found["dice_high"])
  text = (
    f"Data sets that the run did not train on: {', '.join(found['datasets'])}; "
    f"{found['images']} images, {found['tasks']} tasks. Means over tasks."
  )
  if found["unknown"]:
    text += (
      " What the weights met before is not known: it began from "
      f"{', '.join(found['unknown'])}."
    )
  return (
    "<h3>External validation</h3>"
    + tables.lead(text)
    + tables.pairs(
      ["Measure", "Value"],
      [
        (f"Dice, 95% interval {interval}", found["dice"]),
        ("IoU", found["iou"]),
      ],
    )
    + _groups(found["by_group"])
  )


def _groups(found: Mapping[str, Any]) -> str:
  means = ("tasks", "masks", "dice", "iou", "nsd_mm", "nsd_px")
  return "".join(
    tables.fold(
      title,
      tables.plain(
        ["Group", "Tasks", "Masks", "Dice", "IoU", "NSD, mm", "NSD, px"],
        [
          (name, *(row[key] for key in means))
          for name, row in found[grouping].items()
        ],
      ),
    )
    for grouping, title in GROUPINGS.items()
    if found[grouping]
  )
