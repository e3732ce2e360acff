"""A run whose model says what is written for it, and draws what it sees.

Its weights are noise, but in its words each token of the answer follows the one
before. So nothing has to be trained, and its masks depend on the image.
"""

import dataclasses
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import parts
import toy

from rcmed_jax.apps import runs, settings
from rcmed_jax.data import prompts, tokens
from rcmed_jax.data.pipeline import DataConfig
from rcmed_jax.eval.protocols import EvalConfig
from rcmed_jax.model.rcmed import RCMed
from rcmed_jax.parallel.mesh import MeshConfig
from rcmed_jax.train import checkpoints
from rcmed_jax.train import step as steps
from rcmed_jax.train.config import TrainConfig
from rcmed_jax.train.optimizer import OptimizerConfig

QUESTION = "Where is the heart in this X-Ray image?"
# No token comes twice in it.
ANSWER = "<p> heart </p> [SEG].</s>"


def write(workdir, *, seed=5):
  """Makes the folder of the run."""
  workdir.mkdir(parents=True)
  texts = [prompts.conversation(QUESTION), ANSWER]
  tokenizer = tokens.train_tokenizer(texts, 420, workdir / runs.TOKENIZER)
  config = toy.model_config()
  language = dataclasses.replace(
    config.language, vocabulary=tokenizer.vocabulary, width=32
  )
  config = dataclasses.replace(config, language=language)
  told = settings.Settings(
    DataConfig(lengths=(128, 192), max_targets=2),
    config,
    OptimizerConfig(),
    TrainConfig(),
    MeshConfig(),
    EvalConfig(max_new=16, present_quality=0.0),
  )
  settings.save(told, workdir)
  model = parts.at_random(lambda: RCMed(config, rngs=nnx.Rngs(0)), seed)
  # Without constants, what is dark and what is bright are opposites.
  arrays = jax.tree.map_with_path(
    lambda path, leaf: leaf * 0 if _is_constant(path) else leaf,
    nnx.to_pure_dict(nnx.state(model)),
  )
  _write_words(arrays["language"], tokenizer)
  frozen = {"language": {"layers": arrays["language"].pop("layers")}}
  with checkpoints.Checkpoints(workdir, keep=1) as saved:
    saved.save(
      steps.TrainState(jnp.int32(1), arrays, frozen, {"count": jnp.int32(0)}),
      {},
      {},
    )


def _is_constant(path):
  name = jax.tree_util.keystr(path[-1:])
  return "bias" in name or "position" in name


def _write_words(language, tokenizer):
  rng = np.random.default_rng(1)
  prompt_T, answer_T = (
    tokenizer.encode_prompt(prompts.conversation(QUESTION)),
    tokenizer.encode_answer(prompts.conversation(QUESTION), ANSWER)[0],
  )
  said = answer_T[len(prompt_T) - 1 :].tolist()
  assert len(set(said)) == len(said)
  shape = language["embedding"].shape
  embedding_VD = rng.normal(size=shape).astype(np.float32)
  embedding_VD /= np.linalg.norm(embedding_VD, axis=1, keepdims=True)
  head_DV = np.zeros(shape[::-1], np.float32)
  for before, after in itertools.pairwise(said):
    head_DV[:, after] = 10 * embedding_VD[before]
  language["embedding"] = jnp.asarray(50 * embedding_VD)
  language["head"]["kernel"] = jnp.asarray(head_DV)
