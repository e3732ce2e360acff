import dataclasses
import json
import os
import shutil
import time

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest
import small_disk

from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import averages, reading, room, writing
from rcmed_jax.train import checkpoints as checkpoint_files
from rcmed_jax.train import step as steps


def mesh_of(fsdp):
  return meshes.make_mesh(meshes.MeshConfig(fsdp=fsdp), jax.devices()[:fsdp])


def make_state(step=3, fsdp=8, scale=1.0, rows=8):
  """A state without a model: one trained and two frozen arrays."""
  sharding = NamedSharding(mesh_of(fsdp), PartitionSpec("fsdp"))
  whole = NamedSharding(mesh_of(fsdp), PartitionSpec())
  rng = np.random.default_rng(0)
  kernel = jnp.float32(scale * rng.normal(size=(rows, 4)))
  trainable = jax.device_put({"a": {"steps": {0: kernel}}}, sharding)
  frozen = jax.device_put(
    {"a": {"table": jnp.ones((8, 2), jnp.bfloat16)}}, sharding
  )
  optimizer = optax.adamw(lambda count: 0.1)
  moments = jax.tree.map(
    lambda leaf: jax.device_put(leaf + 1, sharding if leaf.ndim else whole),
    optimizer.init(trainable),
  )
  return steps.TrainState(
    jax.device_put(jnp.int32(step), whole), trainable, frozen, moments
  )


def abstract(state):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=leaf.sharding
    ),
    state,
  )


def assert_same(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
  ):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture
def saved(tmp_path):
  """A working directory with steps 3 and 5."""
  save_two(tmp_path)
  return tmp_path


def save_two(workdir):
  with checkpoint_files.Checkpoints(workdir, keep=2) as checkpoints:
    for step in (3, 5):
      state = make_state(step, scale=step)
      checkpoints.save(state, {"next": 2 * step}, {"note": "toy"})


def test_round_trip_onto_another_mesh(saved):
  wanted = make_state(5, fsdp=2, scale=5)
  with checkpoint_files.Checkpoints(saved) as checkpoints:
    assert checkpoints.latest() == 5
    assert checkpoints.meta() == {"step": 5, "note": "toy"}
    alive = []  # what a watchdog is fed by: after each part
    found = checkpoints.restore(
      abstract(wanted), alive=lambda: alive.append(None)
    )
  assert len(alive) >= 4
  assert (found.data_state, found.damaged) == ({"next": 10}, ())
  assert_same(found.state, wanted)
  assert jax.tree.map(lambda leaf: leaf.sharding, found.state) == jax.tree.map(
    lambda leaf: leaf.sharding, wanted
  )


def test_weights_are_trained_and_frozen_together(saved):
  state = make_state(5, scale=5)
  with checkpoint_files.Checkpoints(saved) as checkpoints:
    weights = checkpoints.weights()
  assert_same(weights, {"a": state.trainable["a"] | state.frozen["a"]})
  assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(weights))


def test_weights_are_read_to_where_they_belong(saved, monkeypatch):
  asked, read = [], reading.arrays

  def arrays(folder, wanted):
    asked.extend(leaf.sharding for leaf in jax.tree.leaves(wanted))
    return read(folder, wanted)

  monkeypatch.setattr(reading, "arrays", arrays)
  rows = NamedSharding(mesh_of(4), PartitionSpec("fsdp"))
  whole = NamedSharding(mesh_of(4), PartitionSpec())
  places = {"a.steps.0": rows, "a.table": whole}
  with checkpoint_files.Checkpoints(saved) as checkpoints:
    found = checkpoints.weights(places)
    stored = checkpoints.stored()
    assert stored.keys() == places.keys()
    one = stored["a.steps.0"].placed(rows)
  assert asked == [rows, whole]  # and to no other place before
  assert found["a"]["steps"][0].sharding == one.sharding == rows
  assert found["a"]["table"].sharding == whole
  assert_same(found["a"]["steps"][0], one)
  assert_same(
    jax.device_get(one), make_state(5, scale=5).trainable["a"]["steps"][0]
  )


def test_the_oldest_are_dropped_and_frozen_weights_written_once(saved):
  written = os.stat(saved / "frozen/_METADATA").st_mtime_ns
  with checkpoint_files.Checkpoints(saved, keep=2) as checkpoints:
    checkpoints.save(make_state(7), None, {})
  assert {path.name for path in (saved / "checkpoints").iterdir()} == {
    "5",
    "7",
  }
  assert os.stat(saved / "frozen/_METADATA").st_mtime_ns == written


@pytest.mark.parametrize("left", ["a part", "another run's"])
def test_frozen_weights_that_no_checkpoint_stands_beside_are_not_trusted(
  tmp_path, left
):
  if left == "a part":  # as a bucket shows what was not finished
    (tmp_path / "frozen").mkdir()
    (tmp_path / "frozen/_CHECKPOINT_METADATA").write_text("{}")
  else:
    with checkpoint_files.Checkpoints(tmp_path, keep=2) as checkpoints:
      other = make_state()
      other.frozen["a"]["table"] *= 2
      checkpoints.save(other, None, {})
    shutil.rmtree(tmp_path / "checkpoints")
  with checkpoint_files.Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(make_state(), None, {})
    checkpoints.wait()
    assert_same(checkpoints.restore(abstract(make_state())).state, make_state())


def test_in_a_bucket_frozen_weights_are_whole_with_the_file_that_says_so(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(
    reading.ocp.utils,
    "is_checkpoint_finalized",
    lambda folder: (folder / "commit_success.txt").exists(),
  )
  folder = epath.Path(tmp_path)
  assert not reading.is_whole(folder / "frozen")
  (folder / "frozen").mkdir()
  assert not reading.is_whole(folder / "frozen")
  (folder / "frozen/commit_success.txt").touch()
  assert reading.is_whole(folder / "frozen")


def test_who_only_reads_leaves_alone_what_is_being_written(saved):
  begun = saved / "checkpoints/7.orbax-checkpoint-tmp-1700000000"
  begun.mkdir()
  (begun / "half").write_text("x")
  with checkpoint_files.Checkpoints(saved) as checkpoints:
    assert checkpoints.latest() == 5
    checkpoints.weights()
    with pytest.raises(ValueError, match="opened to be read"):
      checkpoints.save(make_state(9), None, {})
  assert begun.exists()
  with checkpoint_files.Checkpoints(saved, keep=2):  # who trains clears it away
    for _ in range(600):
      if not begun.exists():
        break
      time.sleep(0.1)
  assert not begun.exists()
  with checkpoint_files.Checkpoints(saved / "none") as checkpoints:
    assert checkpoints.latest() is None
  assert not (saved / "none").exists()


def test_nothing_saved(tmp_path):
  with checkpoint_files.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() is None
    with pytest.raises(ValueError, match="no complete checkpoint"):
      checkpoints.weights()


def _cut_short(folder):
  for path in folder.rglob("d/*"):
    os.truncate(path, 3)


def _flip(path, at, bit=0):
  data = bytearray(path.read_bytes())
  data[at] ^= 1 << bit
  path.write_bytes(data)


def _flip_in_arrays(folder, item="trainable"):
  """One bit of what TensorStore wrote of an item's arrays."""
  path = max((folder / item).rglob("d/*"), key=os.path.getsize)
  _flip(path, path.stat().st_size // 2)


def _lose_shards(folder):
  for path in list((folder / "optimizer").rglob("d")):
    shutil.rmtree(path)


def _mix(folder):
  """Sound files, of another step."""
  shutil.rmtree(folder / "trainable")
  shutil.copytree(folder.parent / "3/trainable", folder / "trainable")


def _age_the_data(folder):
  """Sound JSON, other numbers."""
  (path,) = (p for p in (folder / "data").iterdir() if "next" in p.read_text())
  path.write_text(path.read_text().replace("10", "18"))


def test_whichever_file_is_lost_no_other_state_is_restored(
  saved, tmp_path_factory
):
  """Some are of a commit before the last, and nothing of them is missed."""
  steps, copies = [], tmp_path_factory.mktemp("copies")
  folder = saved / "checkpoints/5/optimizer"
  for lost in [path.relative_to(saved) for path in folder.rglob("d/*")]:
    copy = shutil.copytree(saved, copies / lost.name)
    (copy / lost).unlink()
    with checkpoint_files.Checkpoints(copy, keep=2) as checkpoints:
      found = checkpoints.restore(abstract(make_state(5))).state
    steps.append(int(found.step))
    assert_same(found, make_state(steps[-1], scale=steps[-1]))
  assert 3 in steps and set(steps) <= {3, 5}


@pytest.mark.parametrize(
  "damage",
  [
    lambda folder: shutil.rmtree(folder / "optimizer"),
    lambda folder: shutil.rmtree(folder / "meta"),
    lambda folder: os.truncate(folder / "trainable/_METADATA", 3),
    lambda folder: _cut_short(folder / "trainable"),
    _flip_in_arrays,
    _lose_shards,
    _mix,
    _age_the_data,
  ],
  ids=[
    "no optimizer",
    "no meta",
    "metadata cut",
    "arrays cut",
    "bit flipped",
    "shards lost",
    "of two steps",
    "data aged",
  ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(saved, damage):
  damage(saved / "checkpoints/5")
  with checkpoint_files.Checkpoints(saved, keep=2) as checkpoints:
    found = checkpoints.restore(abstract(make_state(5)))
    assert_same(found.state, make_state(3, scale=3))
    assert found.data_state == {"next": 6}
    (sentence,) = found.damaged
    assert sentence.startswith(
      f"{saved / 'checkpoints/5'}: the checkpoint is d"
    )
    assert "going back to step 3" in sentence
    assert (saved / "damaged/5").is_dir()
    # Its place is free for the step that runs again.
    checkpoints.save(make_state(5, scale=5), {"next": 10}, {})
    checkpoints.wait()
    again = checkpoints.restore(abstract(make_state(5)))
  assert_same(again.state, make_state(5, scale=5))


def _with_large_array(step):
  """Numbers that TensorStore writes as they are, without a checksum."""
  state = make_state(step, scale=step)
  rng = np.random.default_rng(step)
  state.trainable["b"] = jnp.float32(rng.normal(size=(500, 1000)))
  return state


def test_a_flipped_bit_that_reads_as_a_number_is_found(tmp_path):
  with checkpoint_files.Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (3, 5):
      checkpoints.save(_with_large_array(step), None, {})
  _flip_in_arrays(tmp_path / "checkpoints/5")
  with checkpoint_files.Checkpoints(tmp_path) as checkpoints:
    found = checkpoints.restore(abstract(_with_large_array(5)))
  assert_same(found.state, _with_large_array(3))
  assert "b does not hold the numbers that were saved" in found.damaged[0]


@pytest.mark.parametrize(
  ("name", "word"),
  [
    ("array_metadatas/process_0", b'"array_metadata"'),
    ("_sharding", b"NamedSharding"),
  ],
)
def test_a_flipped_bit_in_a_description_is_damage(
  tmp_path, monkeypatch, name, word
):
  # With all files that Orbax writes by itself, as earlier versions left them.
  monkeypatch.setattr(writing, "handler", writing.ocp.PyTreeCheckpointHandler)
  save_two(tmp_path)
  path = tmp_path / "checkpoints/5/trainable" / name
  _flip(path, path.read_bytes().index(word) + 6)
  with checkpoint_files.Checkpoints(tmp_path) as checkpoints:
    found = checkpoints.restore(abstract(make_state(5)))
  assert_same(found.state, make_state(3, scale=3))
  assert "a description cannot be read" in found.damaged[0]


def test_no_flipped_bit_is_believed(saved):
  """Whatever bit of a checkpoint flips: what is restored was saved."""
  rng = np.random.default_rng(0)
  wanted = {step: make_state(step, scale=step) for step in (3, 5)}
  newest = saved / "checkpoints/5"
  kept = saved.parent / "kept"
  shutil.copytree(newest, kept)
  files = sorted(
    p.relative_to(kept) for p in kept.rglob("*") if p.stat().st_size
  )
  files = [p for p in files if (kept / p).is_file()]
  fell_back = 0
  for name in files:
    at = rng.integers((kept / name).stat().st_size)
    _flip(newest / name, at, rng.integers(8))
    with checkpoint_files.Checkpoints(saved) as checkpoints:
      found = checkpoints.restore(abstract(wanted[5]))
    step = int(found.state.step)
    fell_back += step == 3
    assert_same(found.state, wanted[step])
    assert found.data_state == {"next": 2 * step}
    shutil.rmtree(newest, ignore_errors=True)
    shutil.copytree(kept, newest)
  assert fell_back > 3


@pytest.mark.parametrize("lost", ["frozen", "checkpoints/3/meta"])
def test_where_nothing_is_whole_the_way_out_is_told(saved, lost):
  _flip_in_arrays(saved / "checkpoints/5")
  shutil.rmtree(saved / lost)
  with (
    checkpoint_files.Checkpoints(saved) as checkpoints,
    pytest.raises(ValueError) as caught,
  ):
    checkpoints.restore(abstract(make_state(5)))
  assert str(saved / "checkpoints/5") in str(caught.value)
  assert "delete that folder to go on from step 3" in str(caught.value)
  assert not (saved / "damaged").exists()


def test_weights_of_a_damaged_checkpoint_are_refused(saved):
  _flip_in_arrays(saved / "checkpoints/5")
  with (
    checkpoint_files.Checkpoints(saved) as checkpoints,
    pytest.raises(ValueError, match="cannot be restored"),
  ):
    checkpoints.weights()


def test_a_checkpoint_from_before_fingerprints_is_read(saved):
  (path,) = (saved / "checkpoints/5/meta").glob("metadata")
  meta = json.loads(path.read_text())
  del meta["check"]
  path.write_text(json.dumps(meta))
  with checkpoint_files.Checkpoints(saved) as checkpoints:
    found = checkpoints.restore(abstract(make_state(5)))
    assert len(checkpoints.digest()) == 64
  assert_same(found.state, make_state(5, scale=5))


def test_checkpoints_of_other_weights_have_another_digest(saved, tmp_path):
  found = {}
  for name, step, scale in (("a", 5, 5), ("b", 5, 4), ("c", 3, 5)):
    with checkpoint_files.Checkpoints(tmp_path / name, keep=1) as checkpoints:
      checkpoints.save(make_state(step, scale=scale), {}, {"note": name})
      checkpoints.wait()
      found[name] = checkpoints.digest()
  with checkpoint_files.Checkpoints(saved) as checkpoints:
    assert checkpoints.digest() == checkpoints.digest(5) == found.pop("a")
    earlier = checkpoints.digest(3)
  assert len({*found.values(), earlier}) == 3


def test_another_model_is_refused(saved):
  other = make_state(5, rows=16)
  with checkpoint_files.Checkpoints(saved) as checkpoints:
    with pytest.raises(ValueError) as caught:
      checkpoints.restore(abstract(other))
    assert "a.steps.0 has shape (8, 4) there and (16, 4) here" in str(
      caught.value
    )
    other.trainable["b"] = other.trainable["a"].pop("steps")
    with pytest.raises(ValueError, match=r"only there: a.steps.0.*here: b.0"):
      checkpoints.restore(abstract(other))


def test_averaged_weights_are_kept_beside_the_others(tmp_path):
  state = make_state(2)
  optimizer = optax.chain(optax.sgd(0.5), averages.averaging(0.75))
  moments = optimizer.init(state.trainable)
  gradient = jax.tree.map(jnp.ones_like, state.trainable)
  _, moments = optimizer.update(gradient, moments, state.trainable)
  state = dataclasses.replace(state, moments=moments)
  with checkpoint_files.Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(state, None, {})
    checkpoints.wait()
    found = checkpoints.weights(averaged=True)
    kernel = np.asarray(state.trainable["a"]["steps"][0])
    np.testing.assert_allclose(found["a"]["steps"][0], kernel - 0.5, rtol=1e-6)
    assert_same(found["a"]["table"], state.frozen["a"]["table"])
    assert_same(
      checkpoints.weights()["a"]["steps"], state.trainable["a"]["steps"]
    )
    assert_same(checkpoints.restore(abstract(state)).state, state)
  _flip_in_arrays(tmp_path / "checkpoints/2", "average")
  with (
    checkpoint_files.Checkpoints(tmp_path) as checkpoints,
    pytest.raises(ValueError, match="cannot be restored"),
  ):
    checkpoints.weights(averaged=True)


def test_where_no_average_was_kept_none_is_given(saved):
  with (
    checkpoint_files.Checkpoints(saved) as checkpoints,
    pytest.raises(ValueError, match=r"no averaged weights.*optimizer.average"),
  ):
    checkpoints.weights(averaged=True)


def test_too_little_space_is_told_before_writing(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with (
    checkpoint_files.Checkpoints(tmp_path, keep=2) as checkpoints,
    pytest.raises(OSError) as caught,
  ):
    checkpoints.save(make_state(), None, {})
  message = str(caught.value)
  needed = 8 * 4 * 4 * 3 + 8 * 2 * 2 + 2 * 4 + checkpoint_files.OVERHEAD_BYTES
  assert str(tmp_path) in message
  assert f"needs {needed:,} bytes, 1,000 bytes are free" in message
  assert "train.keep" in message


@pytest.fixture
def disk(tmp_path):
  """A file system of 300 kB."""
  with small_disk.mounted(tmp_path / "disk", "300k") as folder:
    yield folder


def test_a_disk_that_fills_while_writing(disk, monkeypatch):
  # As if another program took the space after the check.
  monkeypatch.setattr(room, "require", lambda *_: None)
  rng = np.random.default_rng(0)
  big = make_state()
  big.trainable["b"] = jnp.float32(rng.normal(size=500_000))
  with (
    pytest.raises(OSError, match=r"no space for a checkpoint.*free"),
    checkpoint_files.Checkpoints(disk, keep=2) as checkpoints,
  ):
    checkpoints.save(big, None, {})
    checkpoints.wait()
