"""What a tally says: the report of a check, as JSON takes it."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from rcmed_jax.ingest.checking import duplicates, names
from rcmed_jax.ingest.checking.tally import Tally

VERSION = 1  # of report.json

# Of groups of pictures and of other long lists: so many are shown, all counted.
SHOWN = 20
SHOWN_MEMBERS = 6


def report(tally: Tally, near_bits: int) -> dict[str, Any]:
  """The report; `findings` in it says what asks for a decision."""
  near = _near(tally, near_bits)
  found: dict[str, Any] = {
    "version": VERSION,
    "counts": _counts(tally),
    "sources": [dataclasses.asdict(source) for source in tally.sources],
    "splits": dict(tally.splits),
    "modalities": _nested(tally.modalities),
    "datasets": _nested(tally.datasets),
    "tasks": _tasks(tally),
    "targets_per_image": _sorted(tally.targets),
    "sizes": _sizes(tally.sizes),
    "spacings_mm": {
      "unknown" if key is None else f"{key[0]:g} x {key[1]:g}": count
      for key, count in tally.spacings.most_common(SHOWN)
    },
    "licenses": _nested(tally.licenses),
    "faults": [
      {
        "field": field,
        "reason": reason,
        "count": count,
        "example": tally.examples[field, reason],
      }
      for (field, reason), count in tally.reasons.most_common()
    ],
    "spellings": _spellings(tally),
    "duplicates": _duplicates(tally, near, near_bits),
    "leakage": _leakage(tally, near),
    "ids_twice": _ids_twice(tally),
  }
  found["findings"] = _findings(found)
  return found


def needs_decision(found: Mapping[str, Any]) -> bool:
  """Whether a person has to decide before anything is built of it."""
  return any(finding["decide"] for finding in found["findings"])


def _counts(tally: Tally) -> dict[str, int]:
  keys = (
    "units",
    "read",
    "left_out",
    "unread",
    "quarantined",
    "with_faults",
    "left_out_slices",
    "triplets",
    "described",
    "masks",
    "faults",
    "outside",
  )
  return {key: getattr(tally, key) for key in keys}


def _nested(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
  """{first: {second: count}}, the most frequent first."""
  nested: dict[str, dict[str, int]] = {}
  for (first, second), count in counts.items():
    nested.setdefault(first, {})[second] = count
  return dict(sorted(nested.items(), key=lambda item: -sum(item[1].values())))


def _sorted(counts: Mapping[int, int]) -> dict[str, int]:
  return {str(key): counts[key] for key in sorted(counts)}


def _tasks(tally: Tally) -> list[dict[str, Any]]:
  """Modality and class, with counts by split, the most frequent first."""
  splits: dict[tuple[str, str], dict[str, int]] = {}
  for (modality, name, split), count in tally.tasks.items():
    splits.setdefault((modality, name), {})[split] = count
  tasks = [
    {
      "modality": modality,
      "class": name,
      "images": sum(counts.values()),
      "splits": counts,
      "tiny": tally.tiny[modality, name],
      "full": tally.full[modality, name],
    }
    for (modality, name), counts in splits.items()
  ]
  return sorted(tasks, key=lambda task: -task["images"])


def _sizes(sizes: Mapping[tuple[int, int], int]) -> dict[str, Any]:
  """The most frequent sizes, and how far sides reach."""
  common = collections.Counter(sizes).most_common(SHOWN)
  sides = [side for size in sizes for side in size]
  return {
    "different": len(sizes),
    "shortest_side": min(sides, default=None),
    "longest_side": max(sides, default=None),
    "common": {f"{rows} x {columns}": n for (rows, columns), n in common},
  }


def _spellings(tally: Tally) -> list[dict[str, Any]]:
  counts: collections.Counter[str] = collections.Counter()
  for (_, name, _), count in tally.tasks.items():
    counts[name] += count
  return [
    {"names": dict(cluster.names), "differ_in": list(cluster.reasons)}
    for cluster in names.clusters(counts)
  ]


def _duplicates(
  tally: Tally, near: Sequence[np.ndarray], near_bits: int
) -> dict[str, Any]:
  """Equal and near pictures."""
  equal = duplicates.equal_groups(tally.exact_N)
  return {
    "equal": _groups(tally, equal),
    "near": _groups(tally, near),
    "near_bits": near_bits,
  }


def _near(tally: Tally, near_bits: int) -> list[np.ndarray]:
  """Near pictures that are neither equal nor all of one patient or volume."""
  hashes_K, places_K = tally.seen_K
  exact_N, groups_N = tally.exact_N, tally.groups_N
  found = []
  for group in duplicates.near_groups(hashes_K, near_bits):
    members = places_K[group]
    within = groups_N[members]
    one_volume = within[0] != 0 and (within == within[0]).all()
    if not one_volume and len(np.unique(exact_N[members])) > 1:
      found.append(members)
  return found


def _leakage(tally: Tally, near: Sequence[np.ndarray]) -> dict[str, Any]:
  """What lies on both sides of a split."""
  groups_N = tally.groups_N
  grouped = np.flatnonzero(groups_N)
  by_group = [
    grouped[group] for group in duplicates.equal_groups(groups_N[grouped])
  ]
  return {
    "groups": _groups(tally, _across(tally, by_group)),
    "equal": _groups(
      tally, _across(tally, duplicates.equal_groups(tally.exact_N))
    ),
    "near": _groups(tally, _across(tally, near)),
    "grouped": len(grouped),  # triplets of which patient or volume is known
  }


def _across(tally: Tally, groups: Sequence[np.ndarray]) -> list[np.ndarray]:
  splits_N = tally.splits_N
  return [g for g in groups if len(np.unique(splits_N[g])) > 1]


def _ids_twice(tally: Tally) -> dict[str, Any]:
  return _groups(tally, duplicates.equal_groups(tally.ids_N))


def _groups(tally: Tally, groups: Sequence[np.ndarray]) -> dict[str, Any]:
  """How many, and the largest of them."""
  largest = sorted(groups, key=len, reverse=True)[:SHOWN]
  return {
    "groups": len(groups),
    "images": sum(map(len, groups)),
    "examples": [
      {
        "images": len(group),
        "splits": {
          name: int(count)
          for name, count in zip(*_split_counts(tally, group), strict=True)
        },
        "ids": [
          f"{split}: {id}" for split, id in tally.ids(_some(tally, group))
        ],
      }
      for group in largest
    ],
  }


def _split_counts(
  tally: Tally, group: np.ndarray
) -> tuple[list[str], list[int]]:
  numbers, counts = np.unique(tally.splits_N[group], return_counts=True)
  return [tally.split_names[number] for number in numbers], list(counts)


def _some(tally: Tally, group: np.ndarray) -> list[int]:
  """A few members, one of each split first."""
  splits = tally.splits_N[group]
  firsts = [int(group[splits == split][0]) for split in np.unique(splits)]
  others = [int(place) for place in group if int(place) not in firsts]
  return (firsts + others)[:SHOWN_MEMBERS]


def _findings(found: Mapping[str, Any]) -> list[dict[str, Any]]:
  """What there is to say, what asks for a decision first."""
  leakage, same = found["leakage"], found["duplicates"]
  counts = found["counts"]
  unlicensed = sum(found["licenses"].get("", {}).values())
  tiny = sum(task["tiny"] for task in found["tasks"])
  full = sum(task["full"] for task in found["tasks"])
  bare = found["targets_per_image"].get("0", 0)
  # Count, whether a person must decide, what it is.
  rows = [
    (counts["faults"], True, "faults: files and entries that cannot be used"),
    (leakage["groups"]["groups"], True, "patients or volumes in two splits"),
    (leakage["equal"]["groups"], True, "pictures that are in two splits"),
    (leakage["near"]["groups"], True, "groups of near pictures in two splits"),
    (found["ids_twice"]["groups"], True, "ids that several triplets have"),
    (same["equal"]["groups"], False, "pictures that are there several times"),
    (same["near"]["groups"], False, "groups of pictures that are nearly equal"),
    (len(found["spellings"]), False, "classes that may be spelt in two ways"),
    (unlicensed, False, "images without a license"),
    (tiny, False, "masks too small to be seen by the model"),
    (full, False, "masks that leave no background"),
    (bare, False, "images without any target"),
    (
      counts["left_out_slices"],
      False,
      "slices or tiles without a target, left out",
    ),
    (counts["unread"], False, "units that say nothing unless decoded"),
  ]
  return [
    {"count": count, "decide": decide, "what": what}
    for count, decide, what in rows
    if count
  ]
