"""The page of a check: what there is, and what asks for a decision."""

from collections.abc import Mapping, Sequence
import html
import json
import pathlib
from typing import Any

from rcmed_jax.data import files, web_page
from rcmed_jax.ingest.checking import check, page

# What `report.json` calls "": a license that nobody gave.
NO_LICENSE = "none given"


def write(out: pathlib.Path, report: Mapping[str, Any]) -> pathlib.Path:
  """Writes report.json and index.html; returns the page's path."""
  files.write_whole(out / "report.json", json.dumps(report, indent=1) + "\n")
  counts = report["counts"]
  sections = {
    "Findings": _findings(report),
    "Sources": _sources(report),
    "Modalities": _by_split(report, "modalities", "<modality"),
    "Tasks": _tasks(report),
    "Pictures": _pictures(report),
    "Faults": _faults(report),
    "Leakage": _leakage(report),
    "Duplicates": _duplicates(report),
    "Spellings": _spellings(report),
    "Licenses": _licenses(report),
  }
  splits = ", ".join(
    f"{count:,} {name}" for name, count in report["splits"].items()
  )
  made = web_page.page(
    "Data check",
    f"{counts['triplets']:,} images ({splits or 'no split'}), "
    f"read in {report['seconds']:,} s"
    + ("" if report["decoded"] else "; nothing was decoded")
    + ("" if report["finished"] else "; stopped before the end"),
    sections,
    top=_tiles(report),
    footer=_sums(counts),
    style=page.style(),
  )
  return web_page.write(out / "index.html", made)


def _sums(counts: Mapping[str, int]) -> str:
  return (
    f"Counts add up: {counts['units']:,} units = {counts['read']:,} read + "
    f"{counts['quarantined']:,} quarantined + {counts['left_out']:,} left out "
    f"+ {counts['unread']:,} not looked into; {counts['faults']:,} faults = "
    f"{counts['faults'] - counts['outside']:,} in units + "
    f"{counts['outside']:,} of entries and files that became none. Every fault "
    f"is a line of {check.QUARANTINE}."
  )


def _tiles(report: Mapping[str, Any]) -> str:
  counts = report["counts"]
  tiles = [
    page.tile(
      "Images",
      f"{counts['triplets']:,}",
      f"{counts['described']:,} with description",
    ),
    page.tile(
      "Units read",
      f"{counts['read']:,}",
      f"of {counts['units']:,}; {counts['with_faults']:,} in part",
    ),
    page.tile(
      "Tasks",
      f"{len(report['tasks']):,}",
      f"in {len(report['modalities'])} modalities",
    ),
    page.tile(
      "Masks",
      f"{counts['masks']:,}" if report["decoded"] else "not read",
      "merged by class",
    ),
    page.tile(
      "Faults",
      f"{counts['faults']:,}",
      f"{counts['quarantined']:,} units lost",
    ),
  ]
  return f'<div class="tiles">{"".join(tiles)}</div>'


def _findings(report: Mapping[str, Any]) -> str:
  rows = "".join(
    f"<li{' class=decide' * finding['decide']}><b>{finding['count']:,}</b>"
    f"<span>{html.escape(finding['what'])}</span></li>"
    for finding in report["findings"]
  )
  if not rows:
    return '<p class="clean">Nothing was found that asks for a look.</p>'
  return (
    page.lead(
      "Those in colour ask for a decision before anything is built of the "
      "data; the others are worth a look."
    )
    + f'<ul class="findings">{rows}</ul>'
  )


def _sources(report: Mapping[str, Any]) -> str:
  return page.table(
    ("<split", "<path", "units", "images", "faults"),
    [
      (s["split"], s["path"], s["units"], s["triplets"], s["faults"])
      for s in report["sources"]
    ],
  )


def _by_split(report: Mapping[str, Any], key: str, head: str) -> str:
  """A table of counts, a column for each split."""
  splits = list(report["splits"])
  totals = {name: sum(counts.values()) for name, counts in report[key].items()}
  most = max(totals.values(), default=0)
  return page.table(
    (head, "images", *splits),
    [
      (name, page.bar(totals[name], most), *(c.get(s, 0) for s in splits))
      for name, c in report[key].items()
    ],
  )


def _tasks(report: Mapping[str, Any]) -> str:
  splits = list(report["splits"])
  tasks = report["tasks"]
  most = max((task["images"] for task in tasks), default=0)
  decoded = ("tiny", "full") if report["decoded"] else ()
  table = page.table(
    ("<modality", "<class", "images", *splits, *decoded),
    [
      (
        task["modality"],
        task["class"],
        page.bar(task["images"], most),
        *(task["splits"].get(split, 0) for split in splits),
        *(task[key] for key in decoded),
      )
      for task in tasks
    ],
  )
  if not table:
    return ""
  return (
    page.lead(
      "A task is a modality and a class. Tiny: masks of which nothing is left "
      "in the model's frame. Full: masks that leave no background."
    )
    + table
  )


def _pictures(report: Mapping[str, Any]) -> str:
  sizes = report["sizes"]
  tables = [
    ("Sizes", "rows x columns, pixels", sizes["common"]),
    ("Spacings", "rows x columns, mm", report["spacings_mm"]),
    ("Targets", "in an image", report["targets_per_image"]),
    ("Data sets", "name", _totals(report["datasets"])),
  ]
  shown = "".join(
    f"<div><h3>{name}</h3>{_bars(head, counts)}</div>"
    for name, head, counts in tables
    if counts
  )
  if not sizes["different"]:
    return f'<div class="columns">{shown}</div>' if shown else ""
  return (
    page.lead(
      f"{sizes['different']:,} different sizes, sides of "
      f"{sizes['shortest_side']:,} to {sizes['longest_side']:,} pixels; the "
      f"most frequent {len(sizes['common'])} are shown."
    )
    + f'<div class="columns">{shown}</div>'
  )


def _bars(head: str, counts: Mapping[str, int]) -> str:
  most = max(counts.values(), default=0)
  return page.table(
    (f"<{head}", "images"),
    [(name, page.bar(count, most)) for name, count in counts.items()],
  )


def _totals(nested: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
  return {
    name or "without a name": sum(counts.values())
    for name, counts in nested.items()
  }


def _faults(report: Mapping[str, Any]) -> str:
  table = page.table(
    ("<what", "<reason", "count"),
    [
      (
        fault["field"],
        page.lines(fault["reason"], [f"for example {fault['example']}"]),
        fault["count"],
      )
      for fault in report["faults"]
    ],
  )
  if not table:
    return ""
  return (
    page.lead(
      "By reason; numbers and names in reasons are left out here. "
      f"{check.QUARANTINE} names every one with what to do."
    )
    + table
  )


def _leakage(report: Mapping[str, Any]) -> str:
  leakage = report["leakage"]
  total = report["counts"]["triplets"]
  known = (
    f"Of {leakage['grouped']:,} of {total:,} images the patient or volume is "
    "known; --group finds it in the names of others."
  )
  parts = {
    "One patient or volume": leakage["groups"],
    "The same picture": leakage["equal"],
    "Nearly the same picture": leakage["near"],
  }
  found = _examples(parts)
  if found:
    return page.lead(f"What lies in more than one split. {known}") + found
  if len(report["splits"]) < 2:
    return page.lead("There is one split only: nothing can leak.")
  return page.lead(f"Nothing lies in more than one split. {known}")


def _duplicates(report: Mapping[str, Any]) -> str:
  same = report["duplicates"]
  found = _examples(
    {
      "Equal to the pixel": same["equal"],
      "Nearly equal": same["near"],
      "Ids that come twice": report["ids_twice"],
    }
  )
  if not found:
    return ""
  return (
    page.lead(
      f"Near pictures differ in at most {same['near_bits']} of 64 bits of "
      "their perceptual hash, or are linked by others that do; slices of one "
      "volume "
      "are not counted. They are to be looked at: chest X-rays look alike."
    )
    + found
  )


def _examples(parts: Mapping[str, Mapping[str, Any]]) -> str:
  """The largest groups of each part that has any."""
  texts = []
  for name, part in parts.items():
    if not part["groups"]:
      continue
    shown = len(part["examples"])
    more = f", the largest {shown} shown" if shown < part["groups"] else ""
    texts.append(
      f"<h3>{name}: {part['groups']:,} groups of {part['images']:,} images"
      f"{more}</h3>"
      + page.table(
        ("images", "<splits", "<some of them"),
        [
          (
            group["images"],
            ", ".join(f"{n:,} {split}" for split, n in group["splits"].items()),
            _ids(group["ids"]),
          )
          for group in part["examples"]
        ],
      )
    )
  return "".join(texts)


def _ids(ids: Sequence[str]) -> tuple[str, float]:
  return page.lines("", ids)


def _spellings(report: Mapping[str, Any]) -> str:
  table = page.table(
    ("<names", "<differ in", "images"),
    [
      (
        ", ".join(f"{n} ({count:,})" for n, count in one["names"].items()),
        ", ".join(one["differ_in"]),
        sum(one["names"].values()),
      )
      for one in report["spellings"]
    ],
  )
  if not table:
    return ""
  return (
    page.lead(
      "Names that may be one class. Nothing is changed: decide, and correct "
      "the source."
    )
    + table
  )


def _licenses(report: Mapping[str, Any]) -> str:
  return page.table(
    ("<license", "<data sets", "images"),
    [
      (
        name or (f'<span class="bad">{NO_LICENSE}</span>', 0),
        ", ".join(one or "without a name" for one in list(datasets)[:12]),
        sum(datasets.values()),
      )
      for name, datasets in report["licenses"].items()
    ],
  )
