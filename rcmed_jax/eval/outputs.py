"""The files of one split.

Their names and main keys follow the released evaluator, so that results
compare. Nothing in them depends on the clock or the batch size: the same
answers give the same bytes.
"""

from collections.abc import Iterable, Mapping
import json
from pathlib import Path
from typing import Any

from rcmed_jax.data import files
from rcmed_jax.eval import row_lines
from rcmed_jax.eval.rows import Tally
from rcmed_jax.eval.summary import Summary

# The release calls these files IoU; what they hold is mean Dice.
DICE_NOTE = "mean Dice over masks, despite the name of this file"


def write(summary: Summary, tally: Tally, out_dir: Path) -> None:
  """Writes the files of a split; existing ones are replaced."""
  out_dir.mkdir(parents=True, exist_ok=True)
  split, tables = summary.split, summary.tables
  _write_json(out_dir / f"summary--{split}.json", tables)
  for file, table in (("class", "by_class"), ("mod", "by_modality")):
    dice = {key: row["dice"] for key, row in tables[table].items()}
    path = out_dir / f"{file}_iou_avg--{split}.json"
    _write_json(path, {"_note": DICE_NOTE, **dice})
  for file, rows in (
    ("metrics", tally.masks),
    ("open", tally.open_masks),
    ("recognition", tally.named),
    ("absent", tally.absent),
    ("present", tally.present),
    ("controls", tally.controls),
    ("phrases", tally.phrases),
    ("quarantine", tally.quarantine),
  ):
    _write_lines(out_dir / f"{file}--{split}.jsonl", map(row_lines.of, rows))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
  text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
  files.write_whole(path, text + "\n")


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  lines = (json.dumps(row, sort_keys=True, allow_nan=False) for row in rows)
  files.write_whole(path, (f"{line}\n" for line in lines))
