"""Which links lead to a group, on slices whose sides are known."""

import pytest

from rcmed_jax.parallel import chips, links, topologies
from rcmed_jax.parallel import mesh as meshes


# A link carries 50 GB/s on v5e, 100 on v5p and v6e.
@pytest.mark.parametrize(
  ("name", "sizes", "over", "gbs"),
  [
    # One side of 16, a ring: two links.
    ("v5e:16x16", "data=16,fsdp=16", ("fsdp",), 100),
    ("v6e:16x16", "data=16,fsdp=16", ("fsdp",), 200),
    # Both sides: all four.
    ("v5e:16x16", "data=16,fsdp=16", ("data", "fsdp"), 200),
    ("v5e:16x16", "data=16,fsdp=16", (), 200),
    # Two sides of 4, rings on v5p: four of six; the side of 8 is left.
    ("v5p:4x4x8", "data=8,fsdp=16", ("fsdp",), 400),
    ("v5p:4x4x8", "data=8,fsdp=16", ("data",), 200),
    # A ring of 8, and 2 of another 8.
    ("v5p:8x8x8", "data=32,fsdp=16", ("fsdp",), 300),
    # Sides of less than 16 are rows on v5e: one link each.
    ("v5e:8x8", "data=4,fsdp=16", ("fsdp",), 100),
    ("v5e:2x4", "fsdp=8", ("fsdp",), 100),
  ],
)
def test_links_are_those_of_the_sides_that_a_group_spans(
  name, sizes, over, gbs
):
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  mesh = meshes.make_mesh(
    meshes.parse(sizes), topologies.devices(name).tolist()
  )
  chip = chips.TPUS[name.partition(":")[0]]
  assert links.road(chip, mesh, over) == links.Road(gbs, False)


def test_slices_are_joined_by_the_network():
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  mesh = meshes.make_mesh(
    meshes.parse("slice=2,fsdp=8"), topologies.devices("v5e:2x4", 2).tolist()
  )
  chip = chips.TPUS["v5e"]
  assert links.road(chip, mesh, ("slice",)) == links.Road(3.1, True)
  assert links.road(chip, mesh, ("slice", "fsdp")) == links.Road(3.1, True)
  assert links.road(chip, mesh, ("fsdp",)) == links.Road(100, False)


def test_without_devices_an_axis_is_a_side():
  mesh = meshes.abstract_mesh(meshes.parse("slice=2,data=4,fsdp=16"), 128)
  chip = chips.TPUS["v5p"]
  assert links.road(chip, mesh, ("fsdp",)) == links.Road(200, False)
  assert links.road(chip, mesh, ("data", "fsdp")) == links.Road(400, False)
  assert links.road(chip, mesh, ("slice",)).network


@pytest.mark.parametrize(
  ("sizes", "over", "network"),
  [
    ("data=8,fsdp=8", "fsdp", False),  # GPUs 0 to 7 are a server's
    ("data=8,fsdp=8", "data", True),  # 0, 8, 16, ...
    ("data=4,fsdp=16", "fsdp", True),
    ("fsdp=16,tensor=4", "tensor", False),
    ("data=16,fsdp=2,tensor=2", "fsdp", False),  # 0 and 2
    ("data=2,fsdp=8,tensor=4", "fsdp", True),  # 0, 4, 8, ...
  ],
)
def test_gpus_of_a_server_have_links_to_each_other(sizes, over, network):
  mesh = meshes.abstract_mesh(meshes.parse(sizes), 64)
  found = links.road(chips.GPUS["h100"], mesh, (over,))
  assert found == links.Road(50 if network else 450, network)
