import dataclasses
import json
import os
import signal
import struct

from flax import nnx
import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2
import toy
import trained_once

from rcmed_jax.model import rcmed
from rcmed_jax.parallel import hosts
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import bad_batches, loop, losses, profiles, validation
from rcmed_jax.train import checkpoints as checkpoint_files
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train.config import TrainConfig

# The same settings as in step_test.py, so that one compilation serves both.
MODEL = toy.model_config(lora_rank=2, dropout=0.1)
OPTIMIZER = optimizers.OptimizerConfig(
  learning_rate=0.01, warmup_steps=0, trainable="release"
)
TRAIN = TrainConfig(
  steps=10,
  batch_size=8,
  accumulation=2,
  log_every=4,
  checkpoint_every=4,
  keep=1,
  eval_every=5,
)
MESH = meshes.MeshConfig(data=2, fsdp=2, tensor=2)


class Interrupting(toy.Data):
  """Sends itself a signal while step 6 runs, as batch 7 is fetched."""

  def __next__(self):
    if self._next == 6:
      os.kill(os.getpid(), signal.SIGTERM)
    return super().__next__()


class Spoilt(toy.Data):
  """The batch of step 6 has a label that the vocabulary lacks."""

  def __next__(self):
    batch = super().__next__()
    if self._next == 6:  # has moved on
      batch["labels_BT"][2, -1] = toy.VOCABULARY
      batch["record_B"][:] = range(11, 19)
    return batch


@pytest.fixture(scope="module", autouse=True)
def one_compilation():
  """The runs of this file share one compiled step."""
  with pytest.MonkeyPatch.context() as patch:
    trained_once.Parts().put(patch)
    yield


def train(data, workdir, evaluators=None, config=TRAIN, **more):
  evaluators = evaluators or {}
  return loop.train(
    MODEL, config, OPTIMIZER, MESH, lambda: data, workdir, evaluators, **more
  )


def weights_of(model):
  return jax.device_get(nnx.to_pure_dict(nnx.state(model)))


def lines(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """(workdir, data, weights) of a run without a break."""
  workdir = tmp_path_factory.mktemp("whole")
  data = toy.Data(8)

  def evaluate(model):
    assert isinstance(model, rcmed.RCMed)
    return {"dice": 0.5}

  model = train(data, workdir, {"toy": evaluate})
  return workdir, data, weights_of(model)


def test_stopped_and_resumed_equals_uninterrupted(whole, tmp_path, capsys):
  _, _, wanted = whole
  first = Interrupting(8)
  handler = signal.getsignal(signal.SIGTERM)
  with pytest.raises(SystemExit) as caught:
    train(first, tmp_path)
  assert caught.value.code == hosts.STOPPED
  assert signal.getsignal(signal.SIGTERM) is handler
  assert "Stopped by SIGTERM after step 6" in capsys.readouterr().err

  second = toy.Data(8)
  model = train(second, tmp_path)
  assert first.seen == list(range(7))  # one was prefetched
  assert second.seen == list(range(6, 10))
  jax.tree.map(np.testing.assert_array_equal, weights_of(model), wanted)
  assert [line["step"] for line in lines(tmp_path)] == [4, 6, 8, 10]


def test_a_finished_run_returns_its_model(whole):
  workdir, _, wanted = whole
  data = toy.Data(8)
  found = weights_of(train(data, workdir))
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert not data.seen


def test_checkpoint_holds_the_model(whole):
  workdir, _, wanted = whole
  with checkpoint_files.Checkpoints(workdir) as checkpoints:
    assert checkpoints.latest() == TRAIN.steps
    meta = checkpoints.meta()
    jax.tree.map(np.testing.assert_array_equal, checkpoints.weights(), wanted)
  assert meta["model"]["language"]["vocabulary"] == toy.VOCABULARY
  assert meta["trainable"] == "release"


def test_not_finite_stops_with_step_and_records(tmp_path):
  data = Spoilt(8)
  with pytest.raises(FloatingPointError) as caught:
    train(data, tmp_path)
  message = str(caught.value)
  assert message.startswith("step 6: the loss or its gradient is not finite")
  assert "[11, 12, 13, 14, 15, 16, 17, 18]" in message
  # Seen with one step's lag; what is on disk is from before.
  assert len(data.seen) <= 8
  with checkpoint_files.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 4
    leaves = jax.tree.leaves(checkpoints.weights())
  assert all(np.all(np.isfinite(leaf.astype(np.float32))) for leaf in leaves)


def test_not_finite_is_skipped_where_told(whole, tmp_path, capsys):
  data = Spoilt(8)
  skip = dataclasses.replace(TRAIN, not_finite="skip")
  found = weights_of(train(data, tmp_path, config=skip))
  assert "step 6 was skipped" in capsys.readouterr().err
  kept = bad_batches.read(tmp_path, 6)
  assert kept.records == list(range(11, 19))
  assert kept.data_state == {"next": 5}
  assert data.seen == list(range(10))  # it took the step's place
  by_step = {line["step"]: line for line in lines(tmp_path)}
  assert by_step[8]["skipped"] == 1
  assert "skipped" not in by_step[10]
  assert all(np.isfinite(line["loss"]) for line in by_step.values())
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(found))
  # Its checkpoint counts the skipped step, as its data does.
  with checkpoint_files.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.meta()["step"] == TRAIN.steps


def test_a_window_of_steps_is_profiled(whole, tmp_path):
  _, _, wanted = whole
  found = weights_of(train(toy.Data(8), tmp_path, profile=(3, 4)))
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert list((tmp_path / profiles.FOLDER).rglob("*.xplane.pb"))


def test_a_damaged_checkpoint_loses_steps_and_nothing_else(whole, tmp_path):
  _, _, wanted = whole
  config = dataclasses.replace(TRAIN, keep=2)
  with pytest.raises(SystemExit):
    train(Interrupting(8), tmp_path, config=config)
  # One bit would do, but for files and places that nothing refers to.
  for path in (tmp_path / "checkpoints/6/trainable").rglob("d/*"):
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), 1 + len(data) // 4):
      data[place : place + 64] = bytes(
        byte ^ 1 for byte in data[place : place + 64]
      )
    path.write_bytes(data)
  again = toy.Data(8)
  found = weights_of(train(again, tmp_path, config=config))
  assert again.seen == list(range(4, 10))
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert (tmp_path / "damaged/6").is_dir()


JUDGED = dataclasses.replace(TRAIN, eval_every=2, keep_best=1, patience=2)


@pytest.fixture
def held_out(monkeypatch):
  """Rows whose losses are written down; the steps that were judged."""
  seen = []

  def losses_of(_, state):
    seen.append(int(state.step))
    return {"loss": [5.0, 3.0, 4.0, 3.0][seen[-1] // 2 - 1]}

  monkeypatch.setattr(validation.HeldOut, "__call__", losses_of)
  return validation.Rows(toy.Data(8), batches=1), seen


def assert_ended_by_patience(workdir):
  with checkpoint_files.Checkpoints(workdir) as checkpoints:
    assert checkpoints.all_steps() == [4, 8]
    assert checkpoints.best() == 4
    # The checkpoint was written before it was judged.
    assert checkpoints.meta()["held_out"]["evaluated"] == 6
    assert checkpoints.told()[-1] == {
      "evaluated": 8,
      "best": [[3.0, 4]],
      "since": 2,
    }
    found = checkpoints.weights(), checkpoints.weights(step=4)
  judged = [line for line in lines(workdir) if "validation/loss" in line]
  assert [line["step"] for line in judged] == [2, 4, 6, 8]
  return jax.device_get(found)


def test_the_best_is_kept_and_patience_ends_a_run(held_out, tmp_path, capsys):
  rows, seen = held_out
  data = toy.Data(8)
  train(data, tmp_path / "a", config=JUDGED, held_out=rows)
  assert seen == [2, 4, 6, 8]
  said = capsys.readouterr().err
  assert "better than the best, 3 at step 4. Ended after step 8" in said
  newest, best = assert_ended_by_patience(tmp_path / "a")
  some = jax.tree.leaves(jax.tree.map(np.array_equal, newest, best))
  assert not all(some)  # the best are others than the last

  # Told to stop at step 6, which is judged when the run goes on.
  with pytest.raises(SystemExit):
    train(Interrupting(8), tmp_path / "b", config=JUDGED, held_out=rows)
  train(toy.Data(8), tmp_path / "b", config=JUDGED, held_out=rows)
  assert seen == [2, 4, 6, 8] * 2
  again = assert_ended_by_patience(tmp_path / "b")
  jax.tree.map(np.testing.assert_array_equal, again, (newest, best))

  # Its end is its end, until there is more patience.
  train(data, tmp_path / "b", config=JUDGED, held_out=rows)
  assert len(seen) == 8
  more = dataclasses.replace(JUDGED, patience=5, steps=8)
  train(data, tmp_path / "b", config=more, held_out=rows)
  assert len(seen) == 8


def test_a_stop_between_held_out_batches_leaves_the_step_to_be_judged(
  held_out, tmp_path, monkeypatch
):
  rows, seen = held_out
  judge = validation.HeldOut.__call__

  def stopping_once(self, state):
    if state.step == 10 and len(seen) < 5:
      seen.append(int(state.step))
      os.kill(os.getpid(), signal.SIGTERM)
      assert self._asked() == signal.SIGTERM
      raise validation.StoppedError
    return {"loss": 1.0} if state.step == 10 else judge(self, state)

  monkeypatch.setattr(validation.HeldOut, "__call__", stopping_once)
  config = dataclasses.replace(JUDGED, patience=0, checkpoint_every=10)
  with pytest.raises(SystemExit) as caught:
    train(toy.Data(8), tmp_path, config=config, held_out=rows)
  assert caught.value.code == hosts.STOPPED
  with checkpoint_files.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 10  # saved before it was judged
    assert checkpoints.best() == 4

  for _ in range(2):  # judged once, and known as the best
    train(toy.Data(8), tmp_path, config=config, held_out=rows)
    with checkpoint_files.Checkpoints(tmp_path) as checkpoints:
      assert checkpoints.best() == 10
    judged = [line for line in lines(tmp_path) if "validation/loss" in line]
    assert [line["step"] for line in judged] == [2, 4, 6, 8, 10]


def test_a_metric_that_is_none_is_refused_at_the_start():
  with pytest.raises(ValueError, match=r"train.metric='dise'.*dice"):
    TrainConfig(metric="dise")


def test_no_best_where_nothing_was_held_out(whole):
  workdir, _, _ = whole
  with (
    checkpoint_files.Checkpoints(workdir) as checkpoints,
    pytest.raises(ValueError, match="no checkpoint is known to be the best"),
  ):
    checkpoints.best()


def test_metrics_are_one_json_line_a_log(whole):
  workdir, _, _ = whole
  training = [line for line in lines(workdir) if "loss" in line]
  assert [line["step"] for line in training] == [4, 8, 10]
  assert set(training[0]) == {
    "step",
    "loss",
    "text",
    "dice",
    "bce",
    "boundary",
    "grad_norm",
    "learning_rate",
    "images_per_s",
    "step_s",
    "data_s",
    "wait_s",
  }
  for line in training:  # a host does one thing at a time
    assert 0 < line["data_s"] + line["wait_s"] <= line["step_s"]
  assert training[1]["checkpoint_s"] > 0  # after step 4
  # Linear decay of 0.01 over 10 steps: the rate that step 4 (n = 3) used.
  np.testing.assert_allclose(training[0]["learning_rate"], 0.007, rtol=1e-6)
  assert training[-1]["loss"] < training[0]["loss"]
  evaluated = [line for line in lines(workdir) if "toy/dice" in line]
  assert [line["step"] for line in evaluated] == [5, 10]


def read_events(folder):
  """Events of TensorBoard files: length, its checksum, data, its checksum."""
  for path in folder.iterdir():
    data, at = path.read_bytes(), 0
    while at < len(data):
      (length,) = struct.unpack_from("<Q", data, at)
      event = event_pb2.Event()
      event.ParseFromString(data[at + 12 : at + 12 + length])
      yield event
      at += 12 + length + 4


def test_tensorboard_file_is_readable(whole):
  workdir, _, _ = whole
  found = {
    (event.step, value.tag): value.simple_value
    for event in read_events(workdir / "tensorboard")
    for value in event.summary.value
  }
  for line in lines(workdir):
    for name, number in line.items():
      if name != "step":
        np.testing.assert_allclose(found[line["step"], name], number, rtol=1e-6)


def test_data_that_ends_is_an_error(tmp_path):
  class Ending(toy.Data):
    def __next__(self):
      if self._next == 2:
        raise StopIteration
      return super().__next__()

  with pytest.raises(ValueError, match="data ended after step 2"):
    train(Ending(8), tmp_path)


@pytest.mark.parametrize(
  "config, message",
  [
    ({"batch_size": 6}, "batch_size=6 must be a multiple of 8"),
    ({"steps": 0}, "train.steps=0 must be at least 1"),
    ({"not_finite": "pray"}, "expected one of stop, skip"),
    ({"watchdog_s": -1.0}, "watchdog_s=-1.0 is below 0"),
    ({"patience": -1}, "train.patience=-1 is below 0"),
  ],
)
def test_wrong_sizes_are_named(config, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    loop.train(
      MODEL,
      TrainConfig(**config),
      OPTIMIZER,
      meshes.MeshConfig(),
      toy.Data,
      tmp_path,
    )
  assert losses.LossConfig() == TrainConfig().loss
