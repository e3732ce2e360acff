from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from rcmed_jax.data import prompts, tokens
from rcmed_jax.model import generate, rcmed
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import rules
from rcmed_jax.serve import assistant as assistants

GRID = 16  # of the mask logits: a quarter of the toy's side
CLASSES = ("liver", "spleen", "heart")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  texts = [prompts.answer("pet", CLASSES[:2], CLASSES[2:])]
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  return tokens.train_tokenizer(texts, 400, path)


@pytest.fixture
def ask(tokenizer, monkeypatch):
  """The answer that is read off a given generation.

  The image is 32 x 64, so that the lower half of the frame is padding. The
  answer claims a liver and a spleen and denies a heart; the liver's mask is
  the upper left quarter of the image, P = 0.8 in every pixel, and [SEG] has
  P = 0.5.
  """
  text = prompts.answer("pet", CLASSES[:2], CLASSES[2:])
  ids = tokenizer.encode(text)[1:]
  logits = np.full((1, 3, GRID, GRID), -9.0, np.float32)
  logits[0, 0, :4, :8] = np.log(4)

  def ask(quality, spleen_shown=True, **changes):
    shown = logits.copy()
    if spleen_shown:
      shown[0, 1, 4:, 8:] = np.log(4)  # into the padding

    def made(*_, **__):
      count = jnp.int32(len(ids))
      return generate.Generation(
        tokens_BT=jnp.array([ids], jnp.int32),
        length_B=count[None],
        seg_valid_BG=jnp.array([[True, True, False]]),
        masks_BGYX=jnp.asarray(shown),
        quality_BG=jnp.array([quality]),
        seg_log_prob_BG=jnp.log(jnp.array([[0.5, 0.5, 1.0]])),
        token_log_prob_BT=jnp.zeros((1, len(ids))),
      )

    monkeypatch.setattr(generate, "generate", made)
    assistant = assistants.Assistant(
      nnx.eval_shape(lambda: rcmed.RCMed(toy.model_config(), rngs=nnx.Rngs(0))),
      tokenizer,
      image_size=toy.IMAGE_SIZE,
      lengths=(256,),
      **changes,
    )
    image_IJC = np.zeros((32, 64, 3), np.uint8)
    return assistant.ask(image_IJC, "Where is the liver?")

  return ask


def test_a_mask_comes_back_on_the_grid_of_its_image(ask):
  answer = ask((0.0, 0.0, 0.0))
  assert answer.modality == "pet"
  assert [target.name for target in answer.targets] == list(CLASSES)
  liver, spleen, heart = answer.targets
  assert liver.mask_IJ.shape == (32, 64)
  # Bilinear: the edge of four grid cells lies between -9 and log 4.
  x0, y0, x1, y1 = liver.box
  assert (x0, y0) == (0, 0)
  assert abs(x1 - 32) <= 2
  assert abs(y1 - 16) <= 2
  assert spleen.box[2:] == (64, 32)
  assert (heart.present, heart.mask_IJ, heart.box) == (False, None, None)


def test_without_an_estimate_the_mask_itself_says_what_is_there(ask):
  liver, spleen, _ = ask((-1.0, -1.0, 0.0), spleen_shown=False).targets
  # P([SEG]) = 0.5 times pixels of 0.8 at most, less along the edge.
  assert liver.present
  assert 0.3 < liver.confidence < 0.4
  assert not spleen.present
  assert spleen.confidence == 0


def test_an_estimate_below_the_bar_says_that_nothing_is_there(ask):
  liver, spleen, _ = ask((0.7, 0.29, 0.0), present_quality=0.3).targets
  assert liver.present
  assert liver.confidence == pytest.approx(0.5 * 0.7)
  assert not spleen.present
  assert (spleen.mask_IJ, spleen.box, spleen.confidence) == (None, None, 0)


def test_an_estimate_above_one_is_no_more_than_certain(ask):
  liver, spleen, _ = ask((1.4, 0.31, 0.0), present_quality=0.3).targets
  assert liver.confidence == pytest.approx(0.5)
  assert spleen.present


def test_it_works_on_the_mesh_of_its_weights(tokenizer, monkeypatch):
  sizes = meshes.MeshConfig(data=2, fsdp=2, tensor=2)
  mesh = meshes.make_mesh(sizes)
  model = nnx.eval_shape(
    lambda: rcmed.RCMed(toy.model_config(), rngs=nnx.Rngs(0))
  )
  graphdef, weights = nnx.split(model)
  whole = rules.replicated(mesh)
  weights = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
    weights,
  )

  def made(*_, **__):
    raise RuntimeError(str(dict(jax.sharding.get_abstract_mesh().shape)))

  monkeypatch.setattr(generate, "generate", made)
  assistant = assistants.Assistant(
    nnx.merge(graphdef, weights),
    tokenizer,
    image_size=toy.IMAGE_SIZE,
    lengths=(256,),
  )
  with pytest.raises(RuntimeError, match="'fsdp': 2, 'tensor': 2"):
    assistant.ask(np.zeros((32, 64, 3), np.uint8), "liver")
