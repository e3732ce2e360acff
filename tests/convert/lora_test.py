"""Low-rank updates: peft's names, merging, the way back."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import torch_files
import toy

from rcmed_jax.convert import exporter, importer, lora, sizes, store, torch_io

RANK = 3
ALPHA = 12.0
BASES = {"": "", ".base_layer": ".default"}


@pytest.fixture(scope="module")
def config():
  return toy.model_config()


def _updates(config, targets="qkvo"):
  rng = np.random.default_rng(1)
  width = config.language.width
  return {
    f"model.layers.{layer}.self_attn.{target}_proj.lora_{letter}.weight": (
      rng.normal(0, 0.3, shape).astype(np.float32)
    )
    for layer in range(config.language.depth)
    for target in targets
    for letter, shape in (("A", (RANK, width)), ("B", (width, RANK)))
  }


def _source(folder, config, updates, base="", **told):
  """A checkpoint with updates among its weights, under peft's names."""
  tensors = torch_files.tensors(config)
  held = {}
  for name, value in (tensors | updates).items():
    root = name.removesuffix(".weight")
    if ".lora_" in name:
      name = f"{root}{BASES[base]}.weight"
    elif f"{root}.lora_A.weight" in updates:
      name = f"{root}{base}.weight"
    held[f"base_model.model.{name}"] = value
  torch_files.write(folder, held, sizes.to_release(config))
  told = {"r": RANK, "lora_alpha": ALPHA, **told}
  (folder / "adapter_config.json").write_text(json.dumps(told))
  return tensors


def _convert(path, out, merge):
  looked = importer.look(path, "syre")
  importer.convert(looked, out, name="", licence="", merge=merge)
  return store.read(out)


def _export(held, out, merge):
  exporter.convert(
    held.tensors, held.model, out, sources={}, release=held.release, merge=merge
  )
  return torch_io.read(out)


def _assert_merged(found, tensors, updates):
  """base + alpha / R B A, against float64, rounded to bfloat16 once."""
  for name, base in tensors.items():
    value = np.asarray(found[name])
    root = name.removesuffix(".weight")
    if f"{root}.lora_A.weight" not in updates:
      assert value.tobytes() == base.tobytes(), name
      continue
    down, up = (
      updates[f"{root}.lora_{letter}.weight"].astype(np.float64)
      for letter in "AB"
    )
    expected = base.astype(np.float64) + ALPHA / RANK * up @ down
    assert value.dtype == base.dtype == ml_dtypes.bfloat16
    # Half of a unit in the last of bfloat16's eight bits.
    np.testing.assert_allclose(
      value.astype(np.float64), expected, rtol=2**-8, atol=1e-6, err_msg=name
    )
    changed = value.astype(np.float64) - base.astype(np.float64)
    assert np.abs(changed).mean() > 0.1, name


@pytest.mark.parametrize("base", BASES)
def test_merging_adds_the_scaled_product(base, config, tmp_path):
  updates = _updates(config)
  tensors = _source(tmp_path / "source", config, updates, base)
  held = _convert(tmp_path / "source", tmp_path / "ours", merge=True)
  assert held.model.lora.rank == 0
  _assert_merged(_export(held, tmp_path / "back", True), tensors, updates)


def test_merging_takes_updates_of_some_projections(config, tmp_path):
  updates = _updates(config, "qv")
  tensors = _source(tmp_path / "source", config, updates)
  held = _convert(tmp_path / "source", tmp_path / "ours", merge=True)
  _assert_merged(_export(held, tmp_path / "back", True), tensors, updates)
  with pytest.raises(ValueError, match=r"k_proj\.lora_A\.weight: missing"):
    _convert(tmp_path / "source", tmp_path / "apart", merge=False)


def test_updates_kept_apart_come_back_bit_for_bit(config, tmp_path):
  updates = _updates(config)
  tensors = _source(tmp_path / "source", config, updates, ".base_layer")
  held = _convert(tmp_path / "source", tmp_path / "ours", merge=False)
  assert held.model.lora == dataclasses.replace(
    held.model.lora, rank=RANK, alpha=ALPHA
  )
  assert held.tensors["language.layers.q.down"].shape == (2, 16, RANK)
  back = _export(held, tmp_path / "back", merge=False)
  for name, value in tensors.items():
    assert np.asarray(back[name]).tobytes() == value.tobytes(), name
  for name, value in updates.items():
    found = back[lora.PREFIX + name]
    assert found.file.name == "adapter_model.safetensors"
    assert np.asarray(found).tobytes() == value.tobytes(), name
  told = json.loads((tmp_path / "back/adapter_config.json").read_text())
  assert (told["r"], told["lora_alpha"]) == (RANK, ALPHA)
  # What was exported apart can be merged by importing it again.
  again = _convert(tmp_path / "back", tmp_path / "again", merge=True)
  _assert_merged(_export(again, tmp_path / "merged", True), tensors, updates)


def test_export_merges_what_was_kept_apart(config, tmp_path):
  updates = _updates(config)
  tensors = _source(tmp_path / "source", config, updates)
  held = _convert(tmp_path / "source", tmp_path / "ours", merge=False)
  back = _export(held, tmp_path / "back", merge=True)
  assert back.keys() == tensors.keys()
  _assert_merged(back, tensors, updates)


def test_other_formulas_are_refused(config, tmp_path):
  _source(tmp_path / "source", config, _updates(config), use_rslora=True)
  with pytest.raises(ValueError, match="use_rslora=True is not known here"):
    importer.look(tmp_path / "source", "syre")


def test_one_tensor_under_two_names_is_refused():
  value = np.zeros(1, np.float32)
  tensors = {"w.weight": value, "base_model.model.w.base_layer.weight": value}
  with pytest.raises(ValueError, match=r"holds w\.weight twice"):
    lora.plain_names(tensors)
