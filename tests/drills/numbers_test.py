"""A gradient that is not finite, for one record alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax.data import images, readers
from rcmed_jax.train import step as steps

pytestmark = pytest.mark.heavy

BAD = 7  # the record


@jax.custom_vjp
def spoil(value, bad):
  """The value itself, whose gradient is NaN where `bad`."""
  del bad
  return value


spoil.defvjp(
  lambda value, bad: (value, bad),
  lambda bad, gradient: (jnp.where(bad, jnp.nan, gradient), None),
)


@pytest.fixture(scope="module")
def bad(data):
  """(number, id) of the record whose gradient is NaN."""
  index = readers.read_index(data / "image2label_train.json")
  record = index[BAD]
  pixels_IJC, _ = images.prepare(images.read(record.image), 32)
  mark = int(np.sum(pixels_IJC, dtype=np.int64))
  plain = steps.loss

  def loss(trainable, frozen, graphdef, batch, key, config):
    total, terms = plain(trainable, frozen, graphdef, batch, key, config)
    sums_B = jnp.sum(batch["pixels_BIJC"].astype(jnp.int32), axis=(1, 2, 3))
    return spoil(total, jnp.any(sums_B == mark)), terms

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(steps, "loss", loss)
    yield BAD, record.id


def kept(workdir):
  lines = (workdir / "bad_batches.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_training_stops_and_a_replay_names_the_record(
  bad, afresh, tmp_path, capsys
):
  number, name = bad
  assert afresh(tmp_path) == 2
  said = capsys.readouterr().err
  (line,) = kept(tmp_path)
  assert number in line["records"] and len(line["records"]) == 4
  assert np.isfinite(float(line["metrics"]["loss"]))
  assert line["metrics"]["grad_norm"] == "nan"
  assert f"step {line['step']}: the loss or its gradient is not" in said
  assert f"--replay {line['step']}" in said

  assert afresh(tmp_path, f"--replay={line['step']}") == 0
  first, whole, *alone = capsys.readouterr().out.splitlines()
  assert first.endswith("which it met")
  assert "NOT FINITE  all records" in whole
  # A record that the batch holds twice stands there twice.
  found = {one.strip() for one in alone if "NOT FINITE" in one}
  (verdict,) = {one.partition(": ")[0] for one in found}
  assert verdict == f"NOT FINITE  record {number}, {name}"
  assert len(alone) == 4


def test_or_goes_on_without_such_batches(bad, afresh, tmp_path, capsys):
  number, _ = bad
  assert afresh(tmp_path, "--config.train.not_finite=skip") == 0
  lines = kept(tmp_path)
  assert lines and all(number in line["records"] for line in lines)
  said = capsys.readouterr().err
  rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
  skipped = [json.loads(row)["step"] for row in rows if '"skipped"' in row]
  assert skipped == [line["step"] for line in lines]
  for step in skipped:
    assert f"step {step} was skipped" in said
