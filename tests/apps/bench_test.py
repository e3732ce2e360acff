"""`rcmed bench kernels`: what it lists, and whether its numbers are true."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from rcmed_jax import cli
from rcmed_jax.apps import bench_kernels


def _json(capsys, *flags) -> dict:
  assert cli.main(["bench", "kernels", "--json", *flags]) == 0
  return json.loads(capsys.readouterr().out)


def test_lists_every_op_and_size_with_one_choice_each(capsys):
  found = _json(capsys)
  assert found["platform"] == "cpu"
  chosen = [(row["op"], row["size"]) for row in found["rows"] if row["chosen"]]
  assert chosen == [
    (op, size) for op in bench_kernels.OPS for size in bench_kernels.SIZES
  ]
  for row in found["rows"]:
    assert row["forward_ms"] is None
    assert not (row["chosen"] and row["refusal"])


def test_the_table_gives_the_reason(capsys):
  assert cli.main(["bench", "kernels", "--op", "causal"]) == 0
  printed = capsys.readouterr().out
  assert "B=1 S=1536 N=32 H=128" in printed
  assert "no: it needs a TPU" in printed and "* reference" in printed


@pytest.mark.parametrize("op", bench_kernels.OPS)
def test_every_op_takes_the_shapes_of_the_table(op):
  op = bench_kernels.OPS[op]
  for numbers in op.sizes.values():
    given = op.shapes(numbers, jnp.dtype(jnp.bfloat16))
    found = jax.eval_shape(
      lambda operands, op=op: op.run(**operands, implementation="reference"),
      given,
    )
    for leaf in jax.tree.leaves(found):
      assert leaf.dtype == jnp.bfloat16
      assert leaf.shape in [held.shape for held in jax.tree.leaves(given)]


def test_times_a_cache(capsys):
  found = _json(capsys, "--time", "--op", "cached", "--rounds", "2")
  reference = found["rows"][0]
  assert found["rounds"] == 2 and reference["implementation"] == "reference"
  assert reference["forward_ms"] > 0 and reference["both_ms"] is None
  assert reference["difference"] == 0


def _slow(values: jax.Array) -> jax.Array:
  def wait(values):
    time.sleep(0.05)
    return values

  return jax.pure_callback(wait, values, values)


def test_measures_time_and_difference(monkeypatch):
  """Against an implementation that is late, and wrong in the gradient only."""

  @jax.custom_vjp
  def wrong(values):
    return _slow(jnp.sin(values))

  wrong.defvjp(
    lambda values: (wrong(values), values),
    lambda values, gradient: (1.25 * gradient * jnp.cos(values),),
  )
  op = bench_kernels.Op(
    sizes={"toy": {"B": 3, "S": 5}},
    shapes=lambda numbers, dtype: {
      "values_BS": jax.ShapeDtypeStruct((numbers["B"], numbers["S"]), dtype)
    },
    run=lambda *, values_BS, implementation: (
      wrong if implementation == "wrong" else jnp.sin
    )(values_BS),
    refusals=lambda shapes: {
      "wrong": None,
      "reference": None,
      "absent": "it needs luck",
    },
  )
  monkeypatch.setitem(bench_kernels.OPS, "sine", op)
  listed = bench_kernels.rows("sine", "toy", "float32")
  late, reference, absent = bench_kernels.timed(listed, rounds=3)
  assert late.chosen and late.shape == "B=3 S=5"
  assert late.forward_ms > 50 > reference.forward_ms
  assert late.both_ms > 50 > reference.both_ms
  assert late.difference == pytest.approx(0.25, rel=1e-3)
  assert reference.difference == 0
  assert absent == listed[2]


def test_rounds_must_be_there(capsys):
  assert cli.main(["bench", "kernels", "--rounds", "0"]) == cli.BAD_INPUT
  assert "--rounds=0" in capsys.readouterr().err
