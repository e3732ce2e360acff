"""What programs send, against collectives written out one by one."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from rcmed_jax.parallel import hlo, mesh, traffic

TURNS = 3
ROWS, WIDTH = 16, 128  # of one device's part, float32
PART = 4 * ROWS * WIDTH


@pytest.fixture(scope="module")
def program():
  """One of each kind over 4 devices of 8, three times in a loop."""
  of = mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=4))
  spec = PartitionSpec(("data", "fsdp"))

  def turn(x, _):
    whole = jax.lax.all_gather(x, "fsdp", axis=0, tiled=True)
    part = jax.lax.psum_scatter(
      jnp.sin(whole), "fsdp", scatter_dimension=0, tiled=True
    )
    summed = jax.lax.psum(jnp.cos(part), ("data", "fsdp"))
    swapped = jax.lax.all_to_all(summed, "fsdp", 0, 0, tiled=True)
    ring = [(i, (i + 1) % 4) for i in range(4)]
    return jax.lax.ppermute(jnp.tan(swapped), "fsdp", ring), None

  def run(x):
    return jax.lax.scan(turn, x, None, TURNS)[0]

  x = jax.ShapeDtypeStruct(
    (8 * ROWS, WIDTH), jnp.float32, sharding=NamedSharding(of, spec)
  )
  local = jax.shard_map(
    run, mesh=of, in_specs=spec, out_specs=spec, check_vma=False
  )
  return hlo.parse(jax.jit(local).lower(x).compile().as_text())


def test_every_kind_is_counted_as_often_as_its_loop_turns(program):
  found = {one.kind: one for one in traffic.collectives(program)}
  assert set(found) == set(traffic.KINDS)
  assert {one.times for one in found.values()} == {TURNS}
  assert {one.dtype for one in found.values()} == {"f32"}
  groups = {kind: one.group for kind, one in found.items()}
  assert groups.pop("collective-permute") == 2  # pairs
  assert groups.pop("all-reduce") == 8
  assert set(groups.values()) == {4}


def test_what_is_sent_follows_the_known_algorithms(program):
  """A ring of n: (n - 1) parts to gather or scatter n, twice that to reduce."""
  sent = {one.kind: one.sent for one in traffic.collectives(program)}
  assert sent["all-gather"] == TURNS * 3 * PART
  assert sent["reduce-scatter"] == TURNS * 3 * PART  # of four parts
  assert sent["all-reduce"] == TURNS * 2 * PART * 7 / 8
  assert sent["all-to-all"] == TURNS * PART * 3 / 4
  assert sent["collective-permute"] == TURNS * PART


def test_sources_are_named(program):
  assert all(
    one.source.startswith("traffic_test.py:")
    for one in traffic.collectives(program)
  )


def test_the_mesh_axes_of_a_group_are_told(program):
  found = {
    one.kind: one.axes
    for one in traffic.collectives(program, {"data": 2, "fsdp": 4})
  }
  assert found.pop("all-reduce") == ("data", "fsdp")
  assert set(found.values()) == {("fsdp",)}


def test_what_crosses_slices_is_told(program):
  """Halves of the mesh as two slices: only the sum over all leaves them."""
  across = {
    one.kind
    for one in traffic.collectives(program, {"slice": 2, "fsdp": 4})
    if one.across_slices
  }
  assert across == {"all-reduce"}


# What the TPU compiler writes for 3 slices of 2 x 2: the program of one.
ABROAD = """HloModule m, is_scheduled=true, num_partitions=4

ENTRY %main (p: f32[64]) -> f32[64] {
  %p = f32[64]{0} parameter(0)
  %t = token[] after-all()
  %g = f32[64]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1},{2,3}}, \
to_apply=%add
  ROOT %s = (f32[64]{0}, u32[], token[]) send(%p, %t), channel_id=3, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name=\
"xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.1_0",\
_xla_megascale_target="{1,2,3}x{0:3}",_xla_megascale_transfer_type="KIND"}
}
"""


@pytest.mark.parametrize(
  ("written", "kind", "sent"),
  [
    ("ALL_REDUCE", "all-reduce", 2 * 256 * 2 / 3),
    ("ALL_GATHER", "all-gather", 256 * 2),
    ("ONE_TO_ONE", "collective-permute", 256),
  ],
)
def test_a_transfer_between_slices_is_counted_over_slices(written, kind, sent):
  """Groups of such a program lie in one slice, whatever their numbers."""
  program = hlo.parse(ABROAD.replace("KIND", written))
  mesh = {"slice": 3, "data": 2, "fsdp": 2}
  found = {one.axes: one for one in traffic.collectives(program, mesh)}
  assert set(found) == {("slice",), ("fsdp",)}
  assert not found["fsdp",].across_slices
  abroad = found["slice",]
  assert (abroad.kind, abroad.group, abroad.sent) == (kind, 3, sent)
  assert abroad.across_slices


LINE = """HloModule m, is_scheduled=true, num_partitions=8

ENTRY %main (p: f32[4]) -> f32[4] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %r = f32[4]{{0}} all-reduce(%p), channel_id=1, {groups}, to_apply=%add
}}
"""


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2),
    ("replica_groups=[2,4]<=[8]", 4),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", 2),
    ("replica_groups={}", 8),
  ],
)
def test_groups_are_read_in_all_their_spellings(groups, size):
  program = hlo.parse(LINE.format(groups=groups))
  (found,) = traffic.collectives(program)
  assert found.group == size
  assert found.sent == 2 * 16 * (size - 1) / size


def test_groups_that_nobody_knows_are_an_error():
  program = hlo.parse(LINE.format(groups="replica_groups=unheard"))
  with pytest.raises(ValueError, match="unheard"):
    traffic.collectives(program)


def test_groups_in_another_order_lie_where_they_say():
  """Iota of 2 x 4, transposed: pairs (0, 4), (1, 5), ... cross two slices."""
  slices = {"slice": 2, "data": 4}
  program = hlo.parse(LINE.format(groups="replica_groups=[4,2]<=[2,4]T(1,0)"))
  (found,) = traffic.collectives(program, slices)
  assert found.axes == ("slice",)
  program = hlo.parse(LINE.format(groups="replica_groups=[4,2]<=[8]"))
  (found,) = traffic.collectives(program, slices)
  assert found.axes == ("data",)
