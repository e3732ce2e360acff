"""Counted by hand against the products in the traced model."""

import dataclasses
import math

from flax import nnx
import jax
import pytest
import toy

from rcmed_jax.data import pipeline
from rcmed_jax.model import flops, presets, rcmed
from rcmed_jax.train import cross_entropy


def _traced(jaxpr):
  """Operations of all products of a jaxpr, scans turn by turn."""
  total = 0
  for equation in jaxpr.eqns:
    given = [v.aval for v in equation.invars if hasattr(v.aval, "shape")]
    (shape, *_) = [v.aval.shape for v in equation.outvars]
    if equation.primitive.name == "dot_general":
      ((summed, _), _) = equation.params["dimension_numbers"]
      sizes = [given[0].shape[axis] for axis in summed]
      total += 2 * math.prod(shape) * math.prod(sizes)
    elif equation.primitive.name == "conv_general_dilated":
      kernel, spec = given[1].shape, equation.params["dimension_numbers"]
      total += (
        2 * math.prod(shape) * math.prod(kernel) // kernel[spec.rhs_spec[0]]
      )
    turns = equation.params.get("length", 1)
    for inner in jax.core.jaxprs_in_params(equation.params):
      total += turns * _traced(inner)
  return total


def _count(config, text, targets):
  """A forward pass with the text's logits, of one image."""
  model = nnx.eval_shape(lambda: rcmed.RCMed(config, rngs=nnx.Rngs(0)))
  graphdef, weights = nnx.split(model)
  shapes = pipeline.batch_shapes(
    pipeline.DataConfig(max_targets=targets), config.image.image_size, 1, text
  )
  batch = {name: jax.ShapeDtypeStruct(*spec) for name, spec in shapes.items()}

  def run(weights, batch):
    model = nnx.merge(graphdef, weights)
    said = model(batch)
    return said, cross_entropy.text_loss(
      said.states_BTD,
      model.language.head.kernel[...],
      batch["labels_BT"],
      vocabulary=config.language.vocabulary,
    )

  return _traced(jax.make_jaxpr(run)(weights, batch).jaxpr)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(("text", "targets"), [(64, 1), (96, 2)])
def test_a_forward_pass_has_the_products_that_it_is_said_to(
  steps, text, targets
):
  config = toy.model_config(correlation_steps=steps, lora_rank=2)
  # Wide enough that what is left out (a few tokens of the decoder) is small.
  config = dataclasses.replace(
    config,
    image=dataclasses.replace(
      config.image, image_size=256, width=64, attention="blocks"
    ),
    language=dataclasses.replace(
      config.language, width=64, hidden=96, vocabulary=500
    ),
  )
  counted = sum(flops.forward(config, text, targets).values())
  assert counted == pytest.approx(_count(config, text, targets), rel=0.02)


def test_the_release_takes_what_the_paper_of_its_parts_say():
  """SAM's ViT-H and LLaMA-7B on 1,536 positions; design, stack.md."""
  parts = flops.forward(presets.SYRE_7B, 513)
  assert parts["encoder"] == pytest.approx(5.9e12, rel=0.02)
  assert parts["language"] + parts["head"] == pytest.approx(21.5e12, rel=0.02)
  own, done = flops.train(presets.SYRE_7B, 513, 8, "release")
  assert own == pytest.approx(61e12, rel=0.02)
  assert done == pytest.approx(88e12, rel=0.02)


def test_what_is_made_again_depends_on_the_policy():
  by_policy = {
    policy: flops.train(
      dataclasses.replace(presets.SYRE_7B, remat=policy), 513, 8, "release"
    )
    for policy in ("none", "dots", "attention", "full")
  }
  assert len({own for own, _ in by_policy.values()}) == 1
  done = [by_policy[policy][1] for policy in ("none", "dots", "attention")]
  assert done == sorted(done)
  assert by_policy["attention"][1] < by_policy["full"][1]


def test_an_answer_is_its_prompt_and_its_tokens():
  config = presets.SYRE_7B
  told = dict(text=513, targets=1, new=100, trainable="release")
  whole, again = flops.by_step(config, "evaluate", **told)
  assert whole == again
  prompt, _ = flops.by_step(config, "prefill", **told)
  token, _ = flops.by_step(config, "decode", **told)
  # One token reads every weight of the language model once.
  assert token == pytest.approx(2 * 6.6e9, rel=0.1)
  assert prompt + 100 * token < whole < 1.02 * (prompt + 100 * token)
