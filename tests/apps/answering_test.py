"""Where the weights of an assistant are read to."""

import argparse

from flax import nnx
import jax
import numpy as np
import pytest
import toy

from rcmed_jax.apps import answering
from rcmed_jax.model import rcmed
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import rules

MESH = meshes.MeshConfig(fsdp=2, tensor=2)


def test_all_that_answer_may_lie_on_a_mesh(capsys):
  parser = argparse.ArgumentParser()
  answering.add_flags(parser)
  told = answering.loading(parser.parse_args(["--mesh=fsdp=2,tensor=2"]))
  assert told["mesh"] == meshes.parse("fsdp=2,tensor=2")
  args = parser.parse_args([])
  assert answering.loading(args)["mesh"] is None
  assert "mesh" not in answering.weights(args)  # nor in who answers
  with pytest.raises(SystemExit):
    parser.parse_args(["--mesh=fdsp=2"])
  assert "slice, data, fsdp, tensor" in capsys.readouterr().err


def test_converted_weights_are_placed_one_by_one():
  config = toy.model_config()
  model = nnx.eval_shape(lambda: rcmed.RCMed(config, rngs=nnx.Rngs(0)))
  mesh = meshes.make_mesh(MESH, jax.devices()[:4])
  state = nnx.state(model)
  rng = np.random.default_rng(0)
  given = {
    ".".join(map(str, path)): np.float32(rng.normal(size=leaf.shape))
    for path, leaf in nnx.to_flat_state(state)
  }
  lacks = given.pop("language.embedding").shape
  found = nnx.to_pure_dict(nnx.state(answering._placed(model, mesh, given)))
  wanted, _ = rules.param_shardings(state, mesh)
  found, wanted = (answering._by_name(tree) for tree in (found, wanted))
  assert isinstance(found.pop("language.embedding"), jax.ShapeDtypeStruct)
  assert lacks[0] % rules.LANES
  for name, array in found.items():
    assert array.sharding == wanted[name], name
    np.testing.assert_array_equal(
      array[tuple(map(slice, given[name].shape))], given[name]
    )
  head = found["language.head.kernel"]
  assert head.shape[1] == rules.LANES and not head[:, lacks[0] :].any()
