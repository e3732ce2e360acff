"""Choosing an implementation: the first that can run, or a reason."""

import jax
import pytest

from rcmed_jax.kernels import choice

REFUSALS = {"fast": "it needs eight legs", "middling": None, "reference": None}


def test_no_choice_takes_the_first_that_can_run():
  assert choice.choose("op", None, REFUSALS) == "middling"


def test_an_explicit_choice_that_can_run_is_taken():
  assert choice.choose("op", "reference", REFUSALS) == "reference"


def test_an_explicit_choice_that_cannot_run_says_why():
  with pytest.raises(
    NotImplementedError, match=r"'fast' cannot run here: it needs eight legs"
  ):
    choice.choose("op", "fast", REFUSALS)


def test_an_unknown_choice_lists_those_there_are():
  with pytest.raises(NotImplementedError, match=r"'slow'.*'middling'"):
    choice.choose("op", "slow", REFUSALS)


def test_the_device_is_the_mesh_in_scope_or_the_default_one():
  assert choice.device() == ("cpu", jax.devices()[0].device_kind)
  axis_types = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((1,), ("x",), axis_types=axis_types)
  seen = []
  with jax.set_mesh(mesh):
    jax.jit(lambda x: seen.append(choice.device()) or x)(1.0)
  assert seen == [("cpu", "cpu")]
