"""There and back again, bit for bit, one tensor at a time, killed or not."""

import dataclasses
import hashlib
import json
import shutil
import weakref

import ml_dtypes
import numpy as np
import pytest
import torch_files
import toy

from rcmed_jax.convert import (
  exporter,
  fit,
  importer,
  names,
  names_vision,
  sizes,
  store,
  stream,
  torch_io,
)
from rcmed_jax.model.config import ModelConfig

# Small enough that the toy fills several files.
MOST = 20_000


@pytest.fixture(scope="module")
def config():
  return dataclasses.replace(toy.model_config(), channel_order="bgr")


@pytest.fixture(scope="module")
def source(config, tmp_path_factory):
  """A sharded checkpoint of noise, bfloat16 and float32."""
  folder = tmp_path_factory.mktemp("source") / "syre"
  torch_files.write_release(folder, config, most=MOST)
  assert len(list(folder.glob("model-*.safetensors"))) > 2
  return folder


def _convert(path, out, kind="syre", **options):
  looked = importer.look(path, kind)
  importer.convert(looked, out, name="noise", licence="none", **options)
  return store.read(out)


def _export(held, out, **options):
  exporter.convert(
    held.tensors,
    held.model,
    out,
    sources={},
    kind=held.kind,
    release=held.release,
    **options,
  )
  return torch_io.read(out)


def _bytes(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def _assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, stored in expected.items():
    tensor = np.asarray(stored)
    assert found[name].dtype == tensor.dtype, name
    assert found[name].shape == tensor.shape, name
    assert np.asarray(found[name]).tobytes() == tensor.tobytes(), name


def test_the_vectors_come_back_bit_for_bit(shared, tmp_path):
  path = shared / "vectors/a"
  held = _convert(path, tmp_path / "ours")
  back = _export(held, tmp_path / "back")
  _assert_same(back, torch_io.read(path / "model.safetensors"))
  told = json.loads((tmp_path / "back/config.json").read_text())
  assert told == json.loads((path / "config.json").read_text())
  assert sizes.from_release(told, back, "syre") == held.model


def test_mixed_dtypes_and_shards_come_back(source, tmp_path, monkeypatch):
  monkeypatch.setattr(stream, "SHARD_BYTES", MOST)
  held = _convert(source, tmp_path / "ours")
  kernel = held.tensors["language.layers.up.kernel"]
  assert kernel.dtype == ml_dtypes.bfloat16 and kernel.shape == (2, 16, 32)
  assert held.tensors["mask_decoder.mask_tokens"].dtype == np.float32
  assert held.model.dtype == "bfloat16" and held.model.channel_order == "bgr"
  _assert_same(_export(held, tmp_path / "back"), torch_io.read(source))


def test_arrays_are_those_of_load_into(source, tmp_path):
  held = _convert(source, tmp_path / "ours")
  expected = torch_io.load_into(held.model, torch_io.read(source))
  for path, stored in held.tensors.items():
    array = expected
    for name in path.split("."):
      array = array[name]
    np.testing.assert_array_equal(np.asarray(stored), array, path)


def test_one_layer_of_a_stacked_array_is_read_alone(source, tmp_path):
  held = _convert(source, tmp_path / "ours")
  up = torch_io.read(source)["model.layers.1.mlp.up_proj.weight"]
  layer = held.tensors["language.layers.up.kernel"][(1,)]
  assert layer.span == 16 * 32 * 2
  np.testing.assert_array_equal(np.asarray(layer), np.asarray(up).T)


def test_torch_shards_give_the_same_files(source, tmp_path):
  tensors = {n: np.asarray(t) for n, t in torch_io.read(source).items()}
  folder = tmp_path / "bin"
  folder.mkdir()
  where = {n: f"pytorch_model-{i % 2}.bin" for i, n in enumerate(tensors)}
  for shard in set(where.values()):
    part = {n: tensors[n].copy() for n in tensors if where[n] == shard}
    torch_files.save(folder / shard, part)
  index = json.dumps({"weight_map": where})
  (folder / "pytorch_model.bin.index.json").write_text(index)
  shutil.copy(source / "config.json", folder)
  # What training leaves there is no shard.
  torch_files.save(folder / "training_args.bin", {"step": 3})
  _convert(folder, tmp_path / "a")
  _convert(source, tmp_path / "b")
  a, b = _bytes(tmp_path / "a"), _bytes(tmp_path / "b")
  assert a.pop("manifest.json") != b.pop("manifest.json")
  assert a == b


def test_the_manifest_knows_every_file(source, tmp_path):
  _convert(source, tmp_path / "ours")
  told = json.loads((tmp_path / "ours/manifest.json").read_text())
  assert told["source"] == "noise" and told["licence"] == "none"
  for folder, key in ((source, "sources"), (tmp_path / "ours", "files")):
    expected = {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in folder.iterdir()
      if path.name not in ("manifest.json", torch_io.INDEX)
    }
    assert told[key] == expected


def test_sam_alone_needs_no_config(config, tmp_path):
  tensors = torch_files.tensors(config, "sam")
  assert "image_encoder.pos_embed" in tensors
  path = torch_files.save(tmp_path / "sam_vit.pth", tensors)
  # Heads of SAM's decoder are always eight; the toy's are not.
  held = _convert(path, tmp_path / "ours", "sam")
  assert held.model.image == config.image and held.model.decoder.heads == 8
  assert held.model.channel_order == "rgb"
  parts = {path.split(".")[0] for path in held.tensors}
  assert parts == {"image_encoder", "mask_decoder"}
  manifest = json.loads((tmp_path / "ours/manifest.json").read_text())
  assert set(manifest["parts"]) == parts
  _assert_same(_export(held, tmp_path / "back"), tensors)
  assert not (tmp_path / "back/config.json").exists()


def test_llama_alone_keeps_its_vocabulary(config, tmp_path):
  tensors = torch_files.tensors(config, "llama")
  told = sizes.to_release(config)
  path = torch_files.write(tmp_path / "llama", tensors, told)
  held = _convert(path, tmp_path / "ours", "llama")
  assert held.model.language == config.language
  assert {path.split(".")[0] for path in held.tensors} == {"language"}
  _assert_same(_export(held, tmp_path / "back"), tensors)


def test_theta_is_found_where_new_transformers_keep_it(config):
  told = sizes.to_release(config)
  del told["rope_theta"]
  told["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
  assert sizes.from_release(told, {}, "syre").language.rope_theta == 5e5


def test_the_releases_own_sizes_need_no_block_of_their_own():
  full = ModelConfig()  # ViT-H and LLaMA-7B
  arrays = {
    path: np.broadcast_to(np.float32(0), shape)
    for path, shape in fit.shapes(full).items()
  }
  entries = names.entries(full)
  tensors = {array.name: array for array in fit.to_release(entries, arrays)}
  told = sizes.to_release(full)
  del told["vision"], told["out_dim"]
  found = sizes.from_release(told, tensors, "syre")
  assert (found.image, found.decoder) == (full.image, full.decoder)
  assert found.language == full.language


def test_sizes_without_sam_are_refused(config):
  tensors = torch_files.tensors(config)
  told = sizes.to_release(config)
  del told["vision"]
  assert sizes.from_release(told, tensors, "syre").image == config.image
  del tensors[names_vision.PREFIX + "image_encoder.pos_embed"]
  with pytest.raises(ValueError, match="pos_embed is missing, so SAM's sizes"):
    sizes.from_release(told, tensors, "syre")


class _StoppedError(Exception):
  pass


def _stop_after(pieces):
  seen = []

  def progress(size, total):
    seen.append(size)
    if len(seen) == pieces:
      raise _StoppedError

  return progress


@pytest.mark.parametrize("pieces", [1, 60, 150])
def test_a_killed_conversion_goes_on(pieces, source, tmp_path, monkeypatch):
  monkeypatch.setattr(stream, "SHARD_BYTES", MOST)
  _convert(source, tmp_path / "whole")
  with pytest.raises(_StoppedError):
    _convert(source, tmp_path / "ours", progress=_stop_after(pieces))
  partial = tmp_path / "ours.partial"
  assert not (tmp_path / "ours").exists()
  journal = (partial / stream.JOURNAL).read_text().splitlines()
  assert len(journal) == 1 + pieces
  # A crash may have cut the journal's last line.
  (partial / stream.JOURNAL).write_text("\n".join(journal)[:-4])
  counted, reads = _counted(importer.look(source, "syre"))
  importer.convert(counted, tmp_path / "ours", name="noise", licence="none")
  assert len(reads) == len(counted.tensors) - pieces + 1
  assert _bytes(tmp_path / "ours") == _bytes(tmp_path / "whole")
  assert not partial.exists()


def test_a_half_written_piece_is_written_again(source, tmp_path):
  _convert(source, tmp_path / "whole")
  with pytest.raises(_StoppedError):
    _convert(source, tmp_path / "ours", progress=_stop_after(20))
  partial = tmp_path / "ours.partial"
  kept = (partial / stream.JOURNAL).read_text().splitlines()[:8]
  (partial / stream.JOURNAL).write_text("\n".join([*kept, ""]))
  for path in partial.glob("*.safetensors"):
    data = bytearray(path.read_bytes())
    half = len(data) // 2  # well past what the journal still knows of
    data[half:] = b"\xff" * (len(data) - half)
    path.write_bytes(data)
  _convert(source, tmp_path / "ours")
  assert _bytes(tmp_path / "ours") == _bytes(tmp_path / "whole")


def test_other_files_do_not_go_on_with_it(source, tmp_path):
  path = tmp_path / "source"
  shutil.copytree(source, path)
  with pytest.raises(_StoppedError):
    _convert(path, tmp_path / "ours", progress=_stop_after(9))
  shard = next(path.glob("*.safetensors"))
  shard.write_bytes(shard.read_bytes())
  with pytest.raises(ValueError, match="unfinished conversion of other files"):
    _convert(path, tmp_path / "ours")


class _Counted:
  """A tensor that is counted while its numbers are in memory."""

  def __init__(self, tensor, reads, alive):
    self._tensor, self._reads, self._alive = tensor, reads, alive
    self.shape, self.dtype = tensor.shape, tensor.dtype

  def __getitem__(self, index):
    assert index == ()
    return self

  def __array__(self, dtype=None, copy=None):
    array = np.array(self._tensor).view(_Watched)
    self._alive.add(array)
    self._reads.append(len(self._alive))
    return array


class _Watched(np.ndarray):
  __hash__ = object.__hash__
  __eq__ = object.__eq__


def _counted(source):
  """The source and, for each read, how many tensors were then in memory."""
  reads, alive = [], weakref.WeakSet()
  tensors = {
    name: _Counted(tensor, reads, alive)
    for name, tensor in source.tensors.items()
  }
  return dataclasses.replace(source, tensors=tensors), reads


def test_one_tensor_is_in_memory_at_a_time(source, tmp_path):
  counted, reads = _counted(importer.look(source, "syre"))
  importer.convert(counted, tmp_path / "ours", name="noise", licence="none")
  assert reads == [1] * len(counted.tensors)


def test_every_fault_stands_in_one_error(config, tmp_path):
  tensors = torch_files.tensors(config)
  del tensors["model.norm.weight"]
  tensors["lm_head.weight"] = np.zeros((3, 4), np.float32)
  tensors["model.surprise"] = np.zeros(1, np.float32)
  tensors["model.mm_projector.0.bias"] = np.zeros(16, np.int64)
  name = "model.layers.1.mlp.up_proj.weight"
  tensors[name] = tensors[name].astype(np.float32)
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(
    4, np.float32
  )
  told = sizes.to_release(config)
  path = torch_files.write(tmp_path / "source", tensors, told)
  with pytest.raises(ValueError) as error:
    _convert(path, tmp_path / "ours")
  message = str(error.value)
  for said in (
    "(5 tensors)",
    "model.norm.weight: missing, expected (16,)",
    "lm_head.weight: expected (48, 16), received (3, 4)",
    "model.surprise: unknown",
    "model.mm_projector.0.bias: expected one of float32, bfloat16, float16, "
    "received int64",
    f"{name}: expected bfloat16 like the layers before it, received float32",
  ):
    assert said in message
  assert "inv_freq" not in message
  assert {p.name for p in tmp_path.iterdir()} == {"source"}


def test_a_truncated_shard_is_named(source, tmp_path):
  path = tmp_path / "source"
  shutil.copytree(source, path)
  shard = sorted(path.glob("*.safetensors"))[1]
  for size in (shard.stat().st_size - 1, 100, 3):
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"{shard.name} is cut short"):
      importer.look(path, "syre")


@pytest.mark.parametrize("kind", ["syre", "llama"])
def test_a_missing_config_is_named(kind, source, tmp_path):
  path = tmp_path / "source"
  shutil.copytree(source, path)
  (path / "config.json").unlink()
  with pytest.raises(FileNotFoundError, match=r"source/config\.json is miss"):
    importer.look(path, kind)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"vocab_size": 55}, "vocab_size=55, but model.embed_tokens.weight holds"),
    ({"seg_token_idx": 3}, "seg_token_idx=3, expected 45"),
    ({"hidden_size": None}, "config.json lacks hidden_size"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "scaled rotary"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "scaled rotary"),
    ({"out_dim": None}, "config.json lacks out_dim"),
    ({"hidden_size": "48"}, "hidden_size='48', expected a whole number"),
    ({"num_hidden_layers": 0}, "num_hidden_layers=0, expected a whole number"),
    ({"rms_norm_eps": [1]}, "rms_norm_eps=[1], expected a number above 0"),
    ({"rope_theta": True}, "rope_theta=True, expected a number"),
    ({"rope_parameters": 3}, "rope_parameters is 3, expected a block"),
    ({"vision": [1]}, "vision is [1], expected a block"),
    ({"vision": {"depth": 2}}, "config.json lacks vision.image_size, "),
    ({"rcmed": {"dropout": 0}}, "rcmed.dropout is unknown"),
  ],
)
def test_a_config_that_does_not_fit_is_named(changes, said, source, tmp_path):
  path = tmp_path / "source"
  shutil.copytree(source, path)
  told = json.loads((path / "config.json").read_text()) | changes
  told = {key: value for key, value in told.items() if value is not None}
  (path / "config.json").write_text(json.dumps(told))
  with pytest.raises(ValueError) as error:
    importer.look(path, "syre")
  assert said in str(error.value) and str(path) in str(error.value)


def test_out_must_be_free(source, tmp_path):
  (tmp_path / "ours").mkdir()
  with pytest.raises(FileExistsError, match="ours exists; remove it"):
    _convert(source, tmp_path / "ours")
  (tmp_path / "other.partial").mkdir()
  with pytest.raises(FileExistsError, match="not of an unfinished conversion"):
    _convert(source, tmp_path / "other")


def test_a_small_disk_is_found_first(source, tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(stream.shutil, "disk_usage", lambda path: usage)
  with pytest.raises(OSError, match=r"needs \d\d\d?,\d+ more .*1,000 are free"):
    _convert(source, tmp_path / "ours")
  assert not list(tmp_path.glob("*.partial/*.safetensors"))


def test_weights_of_another_config_are_refused(source, tmp_path):
  _convert(source, tmp_path / "ours")
  path = tmp_path / "ours/config.json"
  path.write_text(path.read_text().replace('"hidden": 32', '"hidden": 64'))
  with pytest.raises(ValueError, match=r"are not those of its config\.json"):
    store.read(tmp_path / "ours")
  for spoilt in (
    {},
    {"kind": "x", "model": {}},
    {"kind": "syre", "model": {"image": 3}},
  ):
    path.write_text(json.dumps({"format": 1} | spoilt))
    with pytest.raises(ValueError, match=r"config\.json is not as it was"):
      store.read(tmp_path / "ours")


def test_what_the_original_cannot_do_is_told_or_refused():
  with pytest.raises(ValueError, match=r"correlation\.steps=1"):
    sizes.to_release(toy.model_config(correlation_steps=1))
  config = toy.model_config()
  told = sizes.to_release(config)  # trained from scratch: RGB
  assert told["rcmed"] == {"channel_order": "rgb"}
  tensors = torch_files.tensors(config)
  assert sizes.from_release(told, tensors, "syre").channel_order == "rgb"
