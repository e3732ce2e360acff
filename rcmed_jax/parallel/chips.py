"""What accelerators can do at most, as their makers tell it."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device of JAX; 1 GB is 1e9 bytes, 1 GiB 2**30."""

  name: str
  memory_gib: float
  tflops: float  # dense bfloat16
  memory_gbs: float  # GB/s, to its own memory
  link_gbs: float  # GB/s that it sends at once over all links to its like
  network_gbs: float  # GB/s of its share of the data-centre network
  domain: int | None = None  # devices that the links join; None: the slice
  sides: int = 0  # of the torus, two links along each; 0: a switch
  ring: int = 1  # a side of a multiple of so many chips closes to a ring
  share: float = 1.0  # of the memory that JAX takes

  @property
  def usable_gib(self) -> float:
    """What a program may take."""
    return self.share * self.memory_gib


# Of a GPU's memory, as benchmarks/gpu.py and the launch files set it by
# XLA_PYTHON_CLIENT_MEM_FRACTION, and what JAX takes where nobody does.
GPU_SHARE = 0.94
GPU_SHARE_UNSET = 0.75

# Sources: Google Cloud's pages on each TPU version (links are told in both
# directions there; sides of 16 close to rings on v5e and v6e, of multiples of 4
# elsewhere) and NVIDIA's data sheets; a server of eight GPUs has eight adapters
# of 400 Gbit/s (A100: 200). A tpu7x chip is two devices, of half each.
TPUS = {
  chip.name: chip
  for chip in (
    Chip("v4", 32, 275, 1200, 300, 3.1, sides=3, ring=4),
    Chip("v5e", 16, 197, 800, 200, 3.1, sides=2, ring=16),
    Chip("v5p", 95, 459, 2765, 600, 6.2, sides=3, ring=4),
    Chip("v6e", 32, 918, 1600, 400, 12.5, sides=2, ring=16),
    Chip("tpu7x", 96, 1153, 3690, 300, 6.2, sides=3, ring=4),
  )
}
GPUS = {
  chip.name: chip
  for chip in (
    Chip("a100", 80, 312, 2039, 300, 25, domain=8, share=GPU_SHARE),
    Chip("h100", 80, 989, 3350, 450, 50, domain=8, share=GPU_SHARE),
    Chip("h200", 141, 989, 4800, 450, 50, domain=8, share=GPU_SHARE),
    Chip("b200", 180, 2250, 8000, 900, 50, domain=8, share=GPU_SHARE),
  )
}

# What JAX calls a device, in part -> its name here; the first that fits.
_KINDS = {
  "tpu v4": "v4",
  "tpu v5 lite": "v5e",
  "tpu v5e": "v5e",
  "tpu v5": "v5p",
  "tpu v6 lite": "v6e",
  "tpu v6e": "v6e",
  "tpu7x": "tpu7x",
  "a100-sxm4-80gb": "a100",
  "h100 80gb": "h100",
  "h200": "h200",
  "b200": "b200",
}


def known(kind: str) -> Chip | None:
  """The chip that JAX calls so, as `device_kind`; None: none of ours."""
  for words, name in _KINDS.items():
    if words in kind.lower():
      return (TPUS | GPUS)[name]
  return None


def gpus(topology: str) -> tuple[Chip, int] | None:
  """(kind, number) of "h100:64"; None where it names no GPU.

  Raises:
    ValueError: a GPU, but no number.
  """
  name, _, count = topology.partition(":")
  if name not in GPUS:
    return None
  if not re.fullmatch(r"[1-9]\d*", count):
    raise ValueError(
      f"topology {topology!r}: expected a number of GPUs, as in {name}:64."
    )
  return GPUS[name], int(count)
