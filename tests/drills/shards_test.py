"""Built shards with a block that is damaged."""

import collections
import json

import drilling
import numpy as np
import pytest

from rcmed_jax import cli
from rcmed_jax.data import checks, pipeline, shards, tokens

pytestmark = pytest.mark.heavy


@pytest.fixture
def built(data, tmp_path):
  """A built set of four shards."""
  out = tmp_path / "set"
  index = data / "image2label_train.json"
  told = ("data", "build", f"train={index}", "--out", str(out))
  assert cli.main([*told, "--shard-units=9", "--processes=1"]) == 0
  return out


def damage(folder):
  """Overwrites a kilobyte of a shard's pixels; the records that it held."""
  path = sorted(folder.glob("rcmed-train.array_record-*"))[1]
  data = bytearray(path.read_bytes())
  middle = len(data) // 2
  data[middle : middle + 1024] = b"\xa5" * 1024
  path.write_bytes(data)
  items, lost = shards.Shards(folder), set()
  for number in range(len(items)):
    try:
      items[number].load()
    except checks.DataError as error:
      assert str(path) in str(error) and "damaged" in str(error)
      lost.add(number)
  assert 0 < len(lost) < len(items)
  return path, lost


def test_what_is_lost_is_quarantined_and_counted(
  built, go_on, whole, tmp_path, capsys
):
  path, lost = damage(built)
  # Who asks is told which shard, by its sum.
  assert cli.main(["data", "verify", str(built)]) != 0
  assert path.name in "".join(capsys.readouterr())

  run = tmp_path / "run"
  more = (
    f"--config.data.index={built}",
    f"--config.data.tokenizer={whole / 'tokenizer.model'}",
  )
  assert go_on(run, *more) == 0
  said = capsys.readouterr().out
  assert f"train: {len(lost)} items could not be used" in said
  listed = (run / "quarantine.jsonl").read_text().splitlines()
  faults = [json.loads(line) for line in listed]
  assert {fault["path"] for fault in faults} == {
    f"{path}[{number - 9}]" for number in lost
  }

  # Of an epoch's rows each record is one, or a row from which nothing is
  # learned.
  batches = pipeline.Pipeline(
    shards.Shards(built),
    tokens.Tokenizer(whole / "tokenizer.model"),
    pipeline.DataConfig(lengths=(208,), mask_size=16),
    image_size=32,
    batch_size=drilling.BATCH,
    quarantine=checks.Quarantine(tmp_path / "quarantine.jsonl"),
  )
  taken = [next(batches) for _ in range(drilling.IMAGES // drilling.BATCH)]
  seen = collections.Counter(
    np.concatenate([batch["record_B"] for batch in taken]).tolist()
  )
  assert seen.pop(-1) == len(lost)
  assert seen == dict.fromkeys(set(range(drilling.IMAGES)) - lost, 1)
  for batch in taken:
    empty = batch["record_B"] == -1
    assert not batch["valid_BG"][empty].any()
    assert (batch["labels_BT"][empty] == tokens.IGNORE_LABEL).all()
