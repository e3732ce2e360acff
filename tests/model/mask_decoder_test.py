"""The decoder against the release's masks, and what targets may share."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import parts
import pytest
import released

from rcmed_jax import axes
from rcmed_jax.model import config as configs
from rcmed_jax.model import mask_decoder as decoders
from rcmed_jax.model.prompt_encoder import Constant, PromptEncoder

TOY = configs.ModelConfig(
  decoder=configs.MaskDecoderConfig(width=16, depth=2, heads=2, hidden=24)
)
GRID = (4, 6)

decode = jax.jit(decoders.MaskDecoder.__call__)


@pytest.fixture(scope="module")
def decoder():
  return parts.at_random(lambda: decoders.MaskDecoder(TOY, rngs=nnx.Rngs(0)))


def _inputs():
  rng = np.random.default_rng(1)
  width = TOY.decoder.width
  pixels = rng.standard_normal((2, *GRID, width), np.float32)
  return pixels, rng.standard_normal((2, 3, width), np.float32)


def test_matches_the_release(shared):
  decoder, case = released.model(shared).mask_decoder, released.case(shared)
  guided = case["image_embeddings"] + case["feedback"]
  masks, _ = decode(decoder, guided.transpose(0, 2, 3, 1), case["seg_queries"])
  assert masks.dtype == jnp.float32
  assert parts.relative_error(masks, case["low_res_masks"]) <= 1e-5


def test_targets_never_see_each_other(decoder):
  pixels, queries = _inputs()
  masks, quality = decode(decoder, pixels, queries)
  for target in range(queries.shape[1]):
    alone, its_quality = decode(
      decoder, pixels, queries[:, target : target + 1]
    )
    np.testing.assert_allclose(alone[:, 0], masks[:, target], atol=1e-4)
    np.testing.assert_allclose(its_quality[:, 0], quality[:, target], atol=1e-5)


def test_the_first_of_all_masks_is_the_answer(decoder):
  pixels, queries = _inputs()
  masks, quality = decode(decoder, pixels, queries)
  every_mask, every_quality = jax.jit(decoders.MaskDecoder.all_masks)(
    decoder, pixels, queries
  )
  rows, columns = GRID
  assert every_mask.shape == (2, 3, 4, 4 * rows, 4 * columns)
  np.testing.assert_allclose(every_mask[:, :, 0], masks, atol=1e-5)
  np.testing.assert_allclose(every_quality[:, :, 0], quality, atol=1e-6)
  assert not np.allclose(every_mask[:, :, 1], masks, atol=1e-2)


def test_subpixels_land_in_their_places():
  """Every child names its row and column; joined, they count up."""
  rows, columns = GRID
  placed = np.zeros((1, 1, 1, rows * columns, 4, 4))
  for pixel, child, grandchild in np.ndindex(rows * columns, 4, 4):
    y, x = divmod(pixel, columns)
    (a, b), (c, d) = divmod(child, 2), divmod(grandchild, 2)
    row, column = 4 * y + 2 * a + c, 4 * x + 2 * b + d
    placed[0, 0, 0, pixel, child, grandchild] = row * 4 * columns + column
  joined = decoders.join_subpixels(jnp.asarray(placed), GRID)
  expected = np.arange(16 * rows * columns).reshape(4 * rows, 4 * columns)
  np.testing.assert_array_equal(joined[0, 0, 0], expected)


def test_positions_match_the_formula():
  prompts = parts.at_random(lambda: PromptEncoder(16, rngs=nnx.Rngs(0)))
  frequencies = np.float64(prompts.frequencies[...])
  found = prompts.positions(GRID)
  for y, x in np.ndindex(*GRID):
    place = np.array([(x + 0.5) / GRID[1], (y + 0.5) / GRID[0]]) * 2 - 1
    angles = 2 * np.pi * place @ frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(found[y, x], expected, atol=1e-5)


def test_frequencies_are_no_parameter(decoder):
  """An optimizer that takes `nnx.Param` leaves them alone."""
  constants = nnx.to_flat_state(nnx.state(decoder, Constant))
  assert [path for path, _ in constants] == [("prompts", "frequencies")]


@pytest.mark.parametrize(
  ("name", "used"),
  [("no_mask", True), ("not_a_point", False), ("points", False)],
)
def test_of_all_prompts_only_no_mask_is_used(decoder, name, used):
  graph, state = nnx.split(decoder)
  state["prompts"][name] = jax.tree.map(lambda x: x + 1, state["prompts"][name])
  found, _ = decode(nnx.merge(graph, state), *_inputs())
  expected, _ = decode(decoder, *_inputs())
  assert np.array_equal(found, expected) != used


def test_bfloat16_stays_near_float32(decoder):
  config = dataclasses.replace(TOY, dtype="bfloat16")
  half = parts.at_random(lambda: decoders.MaskDecoder(config, rngs=nnx.Rngs(0)))
  found, quality = decode(half, *_inputs())
  assert found.dtype == quality.dtype == jnp.float32
  expected, _ = decode(decoder, *_inputs())
  assert np.std(found - expected) / np.std(expected) < 0.03


@pytest.mark.parametrize(("width", "heads"), [(12, 2), (16, 16)])
def test_refuses_widths_that_do_not_divide(width, heads):
  sizes = configs.MaskDecoderConfig(width=width, heads=heads)
  config = configs.ModelConfig(
    decoder=sizes, correlation=configs.CorrelationConfig(heads=2)
  )
  with pytest.raises(ValueError, match="must be a multiple of 8"):
    decoders.MaskDecoder(config, rngs=nnx.Rngs(0))


def test_every_parameter_names_its_axes(decoder):
  for path, variable in nnx.to_flat_state(nnx.state(decoder)):
    found = variable.get_metadata()["out_sharding"]
    assert len(found) == len(variable.shape), path
    assert set(found) <= set(axes.LOGICAL_AXES), path
