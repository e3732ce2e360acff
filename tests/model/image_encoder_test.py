"""The encoder against the release's numbers and brute-force formulas."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import parts
import pytest
import released
import scipy.special

from rcmed_jax import axes
from rcmed_jax.model import config as configs
from rcmed_jax.model import image_encoder as encoders
from rcmed_jax.model.mask_decoder import MaskDecoder
from rcmed_jax.parallel import mesh, topologies

# Two stages of two windowed blocks and a global one, on a 4 x 4 grid that the
# windows of 3 do not divide.
TOY = configs.ModelConfig(
  image=configs.ImageEncoderConfig(
    image_size=32,
    patch_size=8,
    width=16,
    depth=6,
    heads=2,
    mlp_ratio=2.0,
    window=3,
    global_blocks=(2, 5),
  ),
  decoder=configs.MaskDecoderConfig(width=8, heads=2, hidden=16),
)


def _make(kind, *args, **kwargs):
  return parts.at_random(lambda: kind(*args, **kwargs, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def encoder():
  return _make(encoders.ImageEncoder, TOY)


def _image(config, batch=2):
  size = config.image.image_size
  return np.random.default_rng(1).standard_normal(
    (batch, size, size, 3), np.float32
  )


def test_matches_the_release(shared):
  encoder, case = released.model(shared).image_encoder, released.case(shared)
  tokens, pixels = nnx.jit(encoder)(case["pixels"].transpose(0, 2, 3, 1))
  assert parts.relative_error(tokens, case["prenck"]) <= 1e-5
  expected = case["image_embeddings"].transpose(0, 2, 3, 1)
  assert parts.relative_error(pixels, expected) <= 1e-5


def test_scan_equals_one_block_after_another(encoder):
  @jax.jit
  def unrolled(encoder, image):
    tokens = encoder.patches(encoders.cut_patches(image, 8))
    tokens += encoder.positions[...][None]
    windowed, last = encoder.stages.windowed, encoder.stages.last
    for stage in range(2):
      for block in range(2):
        at = (stage, block)
        tokens = jax.tree.map(lambda leaf, at=at: leaf[at], windowed)(tokens)
      tokens = jax.tree.map(lambda leaf, at=stage: leaf[at], last)(tokens)
    return tokens

  image = _image(TOY)
  np.testing.assert_allclose(
    nnx.jit(encoder)(image)[0],
    unrolled(encoder, image),
    rtol=1e-5,
    atol=1e-5,
  )


def test_recomputing_changes_no_gradient():
  rng = np.random.default_rng(1)
  tokens = rng.standard_normal((1, 4, 4, TOY.image.width), np.float32)
  gradients = []
  for remat in ("none", "full"):
    config = dataclasses.replace(TOY, remat=remat)
    stage = _make(encoders.Stage, config, 2)
    slope = jax.jit(jax.grad(lambda part: (part(tokens) ** 3).sum()))
    gradients.append(nnx.state(slope(stage)))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, *gradients)


def _attention_formula(attention, tokens_YXD, window):
  """One image in float64: every query, its window's keys, no folding."""
  kernel, bias, rows, columns, out, out_bias = (
    np.float64(leaf[...])
    for leaf in (
      attention.qkv.kernel,
      attention.qkv.bias,
      attention.rows,
      attention.columns,
      attention.out.kernel,
      attention.out.bias,
    )
  )
  side, _, width = tokens_YXD.shape
  head_width = width // attention.heads
  padded = -(-side // window) * window
  grid = np.zeros((padded, padded, width))
  grid[:side, :side] = tokens_YXD
  q, k, v = (grid @ kernel[:, part] + bias[part] for part in range(3))
  result = np.zeros_like(tokens_YXD, np.float64)
  for y, x, head in np.ndindex(side, side, attention.heads):
    top, left = y // window * window, x // window * window
    cut = slice(head * head_width, (head + 1) * head_width)
    query, scores = q[y, x, cut], np.zeros((window, window))
    for dy, dx in np.ndindex(window, window):
      scores[dy, dx] = (
        query @ k[top + dy, left + dx, cut] / np.sqrt(head_width)
        + query @ rows[y - top - dy + window - 1]
        + query @ columns[x - left - dx + window - 1]
      )
    values = v[top : top + window, left : left + window, cut]
    weights = scipy.special.softmax(scores)
    result[y, x, cut] = np.einsum("yx,yxh->h", weights, values)
  return result @ out + out_bias


def _norm_formula(norm, values):
  centred = values - values.mean(-1, keepdims=True)
  deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
  return centred / deviation * np.float64(norm.scale[...]) + np.float64(
    norm.bias[...]
  )


def _mlp_formula(block, values):
  hidden = values @ np.float64(block.mlp_in.kernel[...])
  hidden += np.float64(block.mlp_in.bias[...])
  hidden *= (1 + scipy.special.erf(hidden / np.sqrt(2))) / 2
  return hidden @ np.float64(block.mlp_out.kernel[...]) + np.float64(
    block.mlp_out.bias[...]
  )


@pytest.mark.parametrize(
  ("grid", "window", "windowed"), [(16, 14, True), (5, 5, False), (4, 6, True)]
)
def test_a_block_matches_the_formula(grid, window, windowed):
  """The padding of a window that overhangs is neither masked nor left out."""
  block = _make(encoders.Block, TOY, window, windowed=windowed)
  rng = np.random.default_rng(2)
  tokens_YXD = rng.standard_normal((grid, grid, TOY.image.width))
  found = nnx.jit(block)(jnp.float32(tokens_YXD)[None])[0]
  normed = _norm_formula(block.attention_norm, tokens_YXD)
  expected = tokens_YXD + _attention_formula(block.attention, normed, window)
  expected += _mlp_formula(block, _norm_formula(block.mlp_norm, expected))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("grid", "window"), [((16, 16), 14), ((5, 9), 3)])
def test_windows_invert(grid, window):
  tokens = np.random.default_rng(0).standard_normal((2, *grid, 3))
  windows = encoders.split_windows(jnp.float32(tokens), window)
  assert windows.shape[1:] == (window, window, 3)
  np.testing.assert_array_equal(
    encoders.join_windows(windows, (2, *grid)), np.float32(tokens)
  )
  # Padding adds zeros and nothing else.
  np.testing.assert_allclose(windows.sum(), tokens.sum(), rtol=1e-4)


def test_patches_are_cut_row_by_row():
  pixels = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  patches = encoders.cut_patches(jnp.asarray(pixels), 2)
  assert patches.shape == (2, 2, 3, 12)
  np.testing.assert_array_equal(
    patches[1, 1, 2], pixels[1, 2:4, 4:6].reshape(-1)
  )


def test_normalize_matches_the_release(shared):
  batch = released.batch(shared)
  found = encoders.normalize(batch["pixels_BIJC"], batch["extent_B2"], "bgr")
  expected = released.case(shared)["pixels"].transpose(0, 2, 3, 1)
  assert parts.relative_error(found, expected) <= 1e-6


def test_normalize_of_both_orders():
  pixels = np.zeros((1, 2, 3, 3), np.uint8)
  pixels[0, 0, 0] = 255, 128, 0
  extent = np.int32([[1, 2]])
  rgb = np.array(encoders.normalize(jnp.asarray(pixels), extent, "rgb"))
  bgr = np.array(encoders.normalize(jnp.asarray(pixels), extent, "bgr"))
  mean, std = map(np.asarray, (configs.PIXEL_MEAN, configs.PIXEL_STD))
  np.testing.assert_allclose(rgb[0, 0, 0], ([255, 128, 0] - mean) / std, 1e-6)
  np.testing.assert_allclose(bgr[0, 0, 0], ([0, 128, 255] - mean) / std, 1e-6)
  np.testing.assert_allclose(rgb[0, 0, 1], -mean / std, 1e-6)  # black, inside
  assert not rgb[0, 1].any() and not rgb[0, :, 2].any()


def test_bfloat16_stays_near_float32(encoder):
  config = dataclasses.replace(TOY, dtype="bfloat16")
  half = _make(encoders.ImageEncoder, config)
  image = _image(TOY)
  for found, expected in zip(
    nnx.jit(half)(image), nnx.jit(encoder)(image), strict=True
  ):
    assert found.dtype == jnp.bfloat16
    assert parts.relative_error(found, np.float64(expected)) < 0.05


def test_refuses_another_image_size(encoder):
  with pytest.raises(ValueError, match=r"expected pixels \[B, 32, 32, 3\]"):
    encoder(np.zeros((1, 32, 64, 3), np.float32))


@pytest.mark.parametrize(
  ("depth", "global_blocks"),
  [(6, (1, 5)), (6, (0, 3)), (5, (2, 4)), (2, (0, 1)), (4, ()), (4, (1, 3, 5))],
)
def test_refuses_uneven_stages(depth, global_blocks):
  image = dataclasses.replace(
    TOY.image, depth=depth, global_blocks=global_blocks
  )
  with pytest.raises(ValueError, match="do not end stages of one length"):
    encoders.ImageEncoder(
      dataclasses.replace(TOY, image=image), rngs=nnx.Rngs(0)
    )


@pytest.mark.parametrize(
  ("grid", "side", "windowed"), [(4, 3, True), (24, 24, False)]
)
def test_the_kernel_gives_the_numbers_of_the_reference(
  grid, side, windowed, monkeypatch
):
  """Values and the gradients of every parameter and of the tokens."""
  for name in ("relpos_attention", "window_relpos_attention"):
    op = getattr(encoders, name)
    monkeypatch.setattr(encoders, name, functools.partial(op, interpret=True))
  tokens = np.random.default_rng(3).standard_normal((1, grid, grid, 32))

  @functools.partial(jax.jit, static_argnums=0)
  def run(graph, weights, tokens):
    out, pull = jax.vjp(
      lambda *given: nnx.merge(graph, given[0])(given[1]), weights, tokens
    )
    return out, nnx.to_pure_dict(pull(out)[0]), pull(out)[1]

  found = []
  for attention in ("pallas", "reference"):
    image = dataclasses.replace(TOY.image, width=32, attention=attention)
    config = dataclasses.replace(TOY, image=image)
    block = _make(encoders.Block, config, side, windowed=windowed)
    found.append(run(*nnx.split(block), jnp.float32(tokens)))
  assert jax.tree.all(jax.tree.map(lambda leaf: leaf.any(), found[1]))
  for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
    assert parts.relative_error(ours, np.float64(theirs)) < 1e-5


def test_an_unknown_attention_is_refused():
  image = dataclasses.replace(TOY.image, attention="fast")
  with pytest.raises(ValueError, match=r"model\.image\.attention='fast'"):
    dataclasses.replace(TOY, image=image)


@pytest.mark.heavy
@pytest.mark.parametrize(
  ("attention", "fits"), [("pallas", True), ("reference", False)]
)
def test_full_size_trains_on_one_small_chip_with_the_kernel(attention, fits):
  """ViT-H, 8 images, forward and backward, against 14 of v5e's 16 GiB."""
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  image = configs.ImageEncoderConfig(attention=attention)
  config = configs.ModelConfig(image=image, dtype="bfloat16")
  chip = topologies.devices("v5e:2x4").flatten()[:1].tolist()
  alone = mesh.make_mesh(mesh.MeshConfig(data=1), chip)
  whole = jax.sharding.NamedSharding(alone, jax.sharding.PartitionSpec())
  with nnx.use_eager_sharding(False):
    encoder = nnx.eval_shape(
      lambda: encoders.ImageEncoder(config, rngs=nnx.Rngs(0))
    )
  graph, weights = nnx.split(encoder)
  pixels = jax.ShapeDtypeStruct((8, 1024, 1024, 3), jnp.float32)
  weights, pixels = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
    (weights, pixels),
  )

  def total(weights, pixels):
    outputs = nnx.merge(graph, weights)(pixels)
    return sum((leaf.astype(jnp.float32) ** 2).mean() for leaf in outputs)

  with jax.set_mesh(alone):
    lowered = jax.jit(jax.grad(total)).lower(weights, pixels)
  try:
    memory = lowered.compile().memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    assert "Ran out of memory on HBM" in str(error) and not fits
    return
  # Arguments and results included: of x * 2 it is twice the bytes of x.
  used = memory.peak_memory_in_bytes
  assert (used <= 14 * 2**30) == fits, f"{used / 2**30:.1f} GiB"


@pytest.mark.parametrize(
  ("image", "parameters"),
  [
    (configs.ImageEncoderConfig(), 641_090_608),  # ViT-H
    (
      configs.ImageEncoderConfig(
        width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)
      ),
      93_735_472,  # ViT-B
    ),
    (
      configs.ImageEncoderConfig(
        width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)
      ),
      312_342_832,  # ViT-L
    ),
  ],
)
def test_full_size_has_as_many_parameters_as_sam(image, parameters):
  """SAM's three sizes; its fixed frequencies are no parameter there or here."""
  config = configs.ModelConfig(image=image)

  def make():
    with nnx.use_eager_sharding(False):
      rngs = nnx.Rngs(0)
      return (
        encoders.ImageEncoder(config, rngs=rngs),
        MaskDecoder(config, rngs=rngs),
      )

  state = nnx.state(nnx.eval_shape(make), nnx.Param)
  assert sum(leaf.size for leaf in jax.tree.leaves(state)) == parameters


def test_every_parameter_names_its_axes(encoder):
  for path, variable in nnx.to_flat_state(nnx.state(encoder)):
    found = variable.get_metadata()["out_sharding"]
    assert len(found) == len(variable.shape), path
    assert set(found) <= set(axes.LOGICAL_AXES), path
