"""Splash attention as the TPU compiler takes it, on a machine without one."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from rcmed_jax import axes
from rcmed_jax.kernels import language_attention, language_attention_tpu
from rcmed_jax.parallel import local, mesh, topologies

_AXES = PartitionSpec(axes.BATCH, None, axes.HEADS)


@pytest.fixture(autouse=True)
def compiler():
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")


def _compile(topology, sizes, shape, *, prefix=False, dtype=jnp.bfloat16):
  """The compiled gradient of attention on a mesh of a slice's devices."""
  devices = topologies.devices(topology).flatten()
  of = mesh.make_mesh(sizes, devices[: sizes.fsdp * sizes.tensor].tolist())
  rows = NamedSharding(of, PartitionSpec("fsdp"))
  cut = NamedSharding(of, PartitionSpec("fsdp", None, "tensor"))
  given = jax.ShapeDtypeStruct(shape, dtype, sharding=cut)
  prefix_B = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=rows)
  attend = local.local(
    lambda q, k, v, prefix_B: language_attention.causal_attention(
      q, k, v, prefix_B=prefix_B, implementation="splash"
    ),
    (_AXES, _AXES, _AXES, PartitionSpec(axes.BATCH)),
    _AXES,
  )

  def loss(q, k, v, prefix_B):
    mixed = attend(q, k, v, prefix_B if prefix else None)
    return jnp.sum(jnp.square(mixed.astype(jnp.float32)))

  with jax.set_mesh(of):
    return (
      jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
      .lower(given, given, given, prefix_B)
      .compile()
    )


ONE = mesh.MeshConfig(data=1)
EIGHT = mesh.MeshConfig(data=1, fsdp=4, tensor=2)


@pytest.mark.parametrize(
  ("topology", "sizes", "shape", "settings"),
  [
    ("v5e:2x4", ONE, (2, 200, 2, 128), {}),
    ("v5e:2x4", EIGHT, (4, 128, 4, 128), {"prefix": True}),
    ("v6e:4x4", EIGHT, (4, 128, 4, 64), {}),
    ("v6e:4x4", ONE, (1, 100, 2, 8), {"prefix": True, "dtype": jnp.float32}),
  ],
)
def test_compiles_forward_and_backward(topology, sizes, shape, settings):
  text = _compile(topology, sizes, shape, **settings).as_text()
  assert "splash_mha_fwd" in text and "splash_mha_dkv" in text
  assert "all-gather" not in text and "all-to-all" not in text


@pytest.mark.heavy
@pytest.mark.parametrize(
  ("topology", "sizes", "prefix"),
  [
    ("v5e:2x4", ONE, True),
    ("v5p:2x2x1", ONE, False),
    ("v6e:4x4", EIGHT, True),
    ("tpu7x:2x2x1", EIGHT, False),
  ],
)
def test_full_size_holds_no_scores(topology, sizes, prefix):
  ways = sizes.fsdp * sizes.tensor
  batch, length, heads = 2 * sizes.fsdp, 1536, 32
  compiled = _compile(
    topology, sizes, (batch, length, heads, 128), prefix=prefix
  )
  scores = batch * heads * length**2 * 4 // ways
  assert compiled.memory_analysis().temp_size_in_bytes < scores / 2


@pytest.mark.parametrize("length", [1, 128, 129, 777, 1100, 1536, 1537, 4000])
def test_blocks_hold_the_sequence_without_much_to_spare(length):
  block, padded = language_attention_tpu._blocks(length)
  assert padded >= length and padded % block == 0
  assert block % 128 == 0 and block <= 512
  assert padded - length < 128 * np.ceil(length / 512)
