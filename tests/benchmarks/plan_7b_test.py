"""What was compiled for the 7B's tables, read again."""

import types

import pytest

from benchmarks import plan_7b

HELD = {
  "kind": "all-gather",
  "dtype": "bf16",
  "across_slices": False,
  "count": 6,
  "sent": 12.0,
}


@pytest.mark.parametrize(
  ("sizes", "trains", "kind", "axes"),
  [
    ({"data": 16, "fsdp": 16, "tensor": 1}, True, "all-gather", "fsdp"),
    ({"data": 16, "fsdp": 16, "tensor": 1}, True, "all-reduce", "data"),
    ({"data": 1, "fsdp": 8, "tensor": 1}, True, "all-reduce", "fsdp"),
    ({"data": 16, "fsdp": 16, "tensor": 1}, False, "all-reduce", "fsdp"),
    ({"data": 32, "fsdp": 1, "tensor": 8}, False, "all-reduce", "tensor"),
  ],
)
def test_sums_held_before_their_axes_were_get_them(sizes, trains, kind, axes):
  step = types.SimpleNamespace(
    mesh=types.SimpleNamespace(shape=sizes), trains=trains
  )
  found = plan_7b._sum({**HELD, "kind": kind}, step)
  assert (found.axes, found.count, found.sent) == ((axes,), 6, 12.0)


def test_sums_that_tell_their_axes_keep_them():
  told = {"kind": "all-reduce", "dtype": "f32", "count": 1, "sent": 2.0}
  found = plan_7b._sum({**told, "axes": ["slice"]}, None)
  assert found.axes == ("slice",)
  assert found.across_slices
