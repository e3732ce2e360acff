"""Named sizes have the parameters that their authors count."""

import dataclasses

from flax import nnx
import jax
import pytest

from rcmed_jax.model import presets
from rcmed_jax.model.rcmed import RCMed

# Of the published checkpoints, mask decoder and prompt encoder included.
SAM = {"VIT_B": 93_735_472, "VIT_L": 312_342_832, "VIT_H": 641_090_608}
# Of the published checkpoints, without the seven added tokens.
LLAMA = {
  "LLAMA_1B": 1_345_423_360,
  "LLAMA_3B": 2_701_560_320,
  "LLAMA_7B": 6_738_415_616,
}
ADDED = 7


def _count(*modules) -> int:
  return sum(
    leaf.size
    for module in modules
    for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))
  )


@pytest.mark.parametrize(("image", "language"), zip(SAM, LLAMA, strict=True))
def test_sizes_are_those_of_the_published_checkpoints(image, language):
  config = dataclasses.replace(
    presets.SYRE_7B,
    image=getattr(presets, image),
    language=getattr(presets, language),
    lora=dataclasses.replace(presets.SYRE_7B.lora, rank=0),
  )
  model = nnx.eval_shape(lambda: RCMed(config, rngs=nnx.Rngs(0)))
  assert _count(model.image_encoder, model.mask_decoder) == SAM[image]
  extra = 2 * ADDED * config.language.width
  assert _count(model.language) == LLAMA[language] + extra
