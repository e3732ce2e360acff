"""`benchmarks/gpu.py`: at toy size on a CPU, and lowered at full size."""

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys

from flax import nnx
import hopper
import jax
import jax.numpy as jnp
import pytest

from rcmed_jax.kernels import choice
from rcmed_jax.model import rcmed
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import losses, optimizer, step

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.heavy  # compiles seven programs
def test_every_part_has_its_rows_at_toy_size(tmp_path):
  result = subprocess.run(
    [
      sys.executable,
      "benchmarks/gpu.py",
      "--toy",
      "--seconds=900",
      f"--out={tmp_path}",
      "all",
    ],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  rows = [
    json.loads(line)
    for line in (tmp_path / "gpu.jsonl").read_text().splitlines()
  ]
  measured = {row["part"] for row in rows if "ms" in row}
  expected = {"kernels", "train", "evaluate", "prefill", "decode"}
  assert measured >= expected | {"correlation"}
  theirs = {row.get("step") for row in rows if row["part"] == "torch"}
  steps = expected - {"kernels"}
  assert importlib.util.find_spec("torch") is None or theirs >= steps
  # What does not run on a CPU says so; nothing else fails.
  failed = {row["failed"] for row in rows if "failed" in row}
  assert all("GPU" in why for why in failed), failed
  assert "Of toy sizes" in (tmp_path / "gpu.md").read_text()


@pytest.fixture
def on_hopper(monkeypatch):
  """Programs are traced as for an H100; cuDNN's version is taken on trust."""
  cudnn = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91300)
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
  monkeypatch.setattr(
    choice, "device", lambda: ("gpu", "NVIDIA H100 80GB HBM3")
  )
  monkeypatch.syspath_prepend(ROOT / "benchmarks")
  return importlib.import_module("gpu_ours")


def _shapes(arrays, rows):
  return {
    name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
    for name, array in arrays.items()
  }


@pytest.mark.heavy  # traces the 7B
@pytest.mark.parametrize("attention", ["pallas", "cudnn"])
def test_the_7b_lowers_for_cuda(on_hopper, attention):
  """Traced and lowered, not compiled: kernels and their gradients included."""
  given = importlib.import_module("gpu_cases").sizes(toy=False)
  image = dataclasses.replace(given.model.image, attention=attention)
  config = dataclasses.replace(given.model, image=image, remat="dots")
  batch = importlib.import_module("batches").make(config, 1, given.text[0])
  batch = _shapes(batch, 8)
  adamw = optimizer.make_optimizer(on_hopper.OPTIMIZER, 1000)
  mesh = meshes.make_mesh(meshes.MeshConfig(data=1), jax.devices()[:1])
  layout = step.make_layout(config, on_hopper.OPTIMIZER, adamw, mesh)
  train = step.make_train_step(layout, adamw, losses.LossConfig())
  traced = train.trace(layout.state, batch)
  program = traced.lower(lowering_platforms=("cuda",)).as_text()
  calls = {"pallas": "relpos_backward", "cudnn": "fmhaSoftmaxBackward"}
  assert calls[attention] in program and "fmhaSoftmaxBackward" in program

  graphdef, state = nnx.split(
    nnx.eval_shape(lambda: rcmed.RCMed(config, rngs=nnx.Rngs(0)))
  )
  weights = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16),
    nnx.to_pure_dict(state),
  )
  for answer in (
    on_hopper.evaluate,
    functools.partial(on_hopper.prefill, 1300),
  ):
    assert "fmhaSoftmax" in hopper.lowered(
      lambda weights, batch, answer=answer: answer(
        nnx.merge(graphdef, weights), batch
      ),
      weights,
      batch,
    )
