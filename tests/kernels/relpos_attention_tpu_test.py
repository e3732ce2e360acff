"""The TPU kernels, interpreted against float64 and compiled for TPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from relpos_formula import NAMES, arguments, formula

from rcmed_jax.kernels import relpos_attention_tpu as tpu
from rcmed_jax.kernels import relpos_attention_tpu_window as window
from rcmed_jax.kernels.relpos_attention import refusals, relpos_attention
from rcmed_jax.parallel import topologies

kernel = functools.partial(
  relpos_attention, implementation="pallas", interpret=True
)
# The largest error over the largest entry of the array at hand.
TOLERANCE = {"float32": 5e-6, "bfloat16": 1e-2}


def _compare(given, dtype, *, seed=1):
  """Output and gradients of the kernel within tolerance of the formula."""
  q, k, v, rel_h, rel_w = given
  rng = np.random.default_rng(seed)
  do = jnp.asarray(rng.standard_normal(v.shape), dtype)
  rounded = [
    *(jnp.asarray(array, dtype) for array in (q, k, v)),
    jnp.float32(rel_h),
    jnp.float32(rel_w),
  ]
  scale = q.shape[-1] ** -0.5

  @jax.jit
  def run(do, *given):
    o, pull = jax.vjp(lambda *a: kernel(*a, scale), *given)
    return o, *pull(do)

  expected = formula(*rounded, scale, do)
  for name, ours, theirs in zip(
    NAMES, run(do, *rounded), expected, strict=True
  ):
    assert ours.dtype == (jnp.float32 if "rel" in name else dtype)
    error = np.abs(np.float64(ours) - theirs).max() / np.abs(theirs).max()
    assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  ("windows", "rows", "columns", "width"),
  [
    (2, 14, 14, 80),  # SAM's window
    (1, 8, 16, 64),  # rows and columns that fill registers
  ],
)
def test_windows_match_the_formula(windows, rows, columns, width, dtype):
  _compare(arguments(windows, rows, columns, width), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  ("heads", "rows", "columns", "width"),
  [
    (2, 20, 32, 32),  # 640 patches: five blocks of 128 queries
    (1, 17, 45, 48),  # rows and columns to fill up, one block of keys
  ],
)
def test_grids_match_the_formula(heads, rows, columns, width, dtype):
  assert rows * columns > tpu.TILE_PATCHES
  _compare(arguments(heads, rows, columns, width), dtype)


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("side", "heads"), [(14, 25), (64, 1)])
def test_full_sizes_match_the_formula(side, heads, dtype):
  """ViT-H's: all windows of an image, more than a program takes; its grid.

  With biases of standard deviation 16, whose errors are larger than of 1.
  """
  _compare(arguments(heads, side, side, 80, spread=16.0), dtype)


@pytest.mark.parametrize(("rows", "columns"), [(5, 6), (17, 32)])
def test_large_biases_stay_exact(rows, columns):
  """Scores in the thousands of either sign; bfloat16 would be lost here."""
  q, k, v, rel_h, rel_w = arguments(2, rows, columns, 16, spread=16.0)
  rel_h[0, :, 0] += 1e4
  rel_h[1, :, -1] -= 1e4
  _compare([q, k, v, rel_h, rel_w], "bfloat16")


@pytest.mark.parametrize(("rows", "columns"), [(5, 6), (17, 32)])
def test_scores_of_ten_thousand_give_no_nan(rows, columns):
  q, k, v, rel_h, rel_w = arguments(1, rows, columns, 16)
  given = [jnp.float32(a) for a in (100 * q, 100 * k, v, rel_h, rel_w)]
  assert np.abs(np.einsum("MPH,MSH->MPS", given[0], given[1])).max() > 3e4
  o, pull = jax.vjp(lambda *a: kernel(*a, 1.0), *given)
  expected = formula(*given, 1.0, np.ones_like(o))
  # Scores of 1e4 are known to 1e-3 in float32.
  np.testing.assert_allclose(o, expected[0], atol=2e-2)
  for gradient in pull(jnp.ones_like(o)):
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
  ("windows", "rows", "columns"), [(3, 3, 5), (1, 17, 33)]
)
def test_what_fills_up_gives_and_takes_nothing(
  windows, rows, columns, monkeypatch
):
  """Equal keys weigh 1 / P each, so that one too many would show.

  Three windows make a program of two and one that lacks its second.
  """
  monkeypatch.setattr(window, "WINDOWS", 2)
  patches = rows * columns
  q, _, v, rel_h, rel_w = arguments(windows, rows, columns, 16)
  q, k, v = jnp.float32(q), jnp.zeros_like(q, jnp.float32), jnp.float32(v)
  flat = [jnp.zeros_like(bias, jnp.float32) for bias in (rel_h, rel_w)]
  o, pull = jax.vjp(lambda *a: kernel(*a, 1.0), q, k, v, *flat)
  mean = np.broadcast_to(v.mean(1, keepdims=True), v.shape)
  np.testing.assert_allclose(o, mean, atol=1e-6)
  dv = pull(jnp.ones_like(o))[2]
  np.testing.assert_allclose(dv, np.ones((windows, patches, 16)), atol=1e-5)


def test_grids_are_filled_up_to_whole_registers():
  assert tpu.padded_grid(14, 14) == (14, 14)
  assert tpu.padded_grid(64, 64) == (64, 64)
  assert tpu.padded_grid(33, 62) == (34, 64)
  assert tpu.padded_grid(40, 36) == (48, 40)


def _shapes(patches, width, rows, columns, dtype="bfloat16", heads=1):
  features = (width, width, width, rows, columns)
  dtypes = (dtype, dtype, dtype, "float32", "float32")
  return [
    jax.ShapeDtypeStruct((heads, patches, size), kind)
    for size, kind in zip(features, dtypes, strict=True)
  ]


@pytest.mark.parametrize(
  ("rows", "width", "dtype", "reason"),
  [
    (4, 24, "bfloat16", "a head width of 16, 32, ... 128, not 24"),
    (4, 144, "float32", "a head width of 16, 32, ... 128, not 144"),
    (4, 16, "float16", "all bfloat16 or all float32, not float16"),
    (80, 16, "bfloat16", "at most 4096 patches after padding, not 6400"),
  ],
)
def test_says_what_it_cannot(rows, width, dtype, reason):
  given = _shapes(rows * rows, width, rows, rows, dtype)
  found = refusals(*given, interpret=True)
  assert reason in found["pallas"] and found["reference"] is None


def test_without_a_tpu_the_reference_runs():
  found = refusals(*_shapes(16, 16, 4, 4))
  assert "needs a TPU or a GPU, not a cpu" in found["pallas"]
  given = [jnp.float32(a) for a in arguments(1, 4, 4, 16)]
  np.testing.assert_array_equal(
    relpos_attention(*given, 0.25),
    relpos_attention(*given, 0.25, implementation="reference"),
  )


def _compiled(name, heads, rows, columns, width, dtype="bfloat16"):
  """Forward and backward for one chip of a slice."""
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  mesh = jax.sharding.Mesh(topologies.devices(name)[:1], ("x",))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def run(do, *given):
    o, pull = jax.vjp(
      lambda *a: relpos_attention(*a, 0.1, implementation="pallas"), *given
    )
    return o, *pull(do)

  shapes = _shapes(rows * columns, width, rows, columns, dtype, heads)
  given = [
    jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole)
    for a in (shapes[0], *shapes)
  ]
  with jax.set_mesh(mesh):
    return jax.jit(run).lower(*given).compile()


@pytest.mark.parametrize(
  ("name", "rows", "columns"),
  [("v5e:2x2", 4, 6), ("v5p:2x2x1", 7, 7), ("v6e:2x2", 18, 32)],
)
def test_compiles_for_tpus(name, rows, columns):
  text = _compiled(name, 2, rows, columns, 32).as_text()
  kind = "relpos" if rows * columns > tpu.TILE_PATCHES else "relpos_window"
  assert f"{kind}_forward" in text and f"{kind}_backward" in text


@pytest.mark.heavy
@pytest.mark.parametrize(
  "name", ["v5e:2x4", "v5p:2x2x1", "v6e:4x4", "tpu7x:2x2x1"]
)
@pytest.mark.parametrize(("side", "heads"), [(14, 200 * 16), (64, 8 * 16)])
def test_full_sizes_compile_with_little_beside(name, side, heads):
  """ViT-H, 8 images: the layout work around the kernels included."""
  compiled = _compiled(name, heads, side, side, 80)
  assert compiled.memory_analysis().temp_size_in_bytes <= 1.2e9
