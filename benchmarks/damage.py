"""How many flipped bits of a checkpoint pass unseen, without and with checks.

  python benchmarks/damage.py --flips=100

Writes a checkpoint of one array of half a million numbers, flips a random bit
of its data at a time, and counts what reading it says: that it is damaged,
other numbers without a word, or the same numbers. CPU, seconds.
"""

import argparse
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rcmed_jax.train import fingerprints

SHAPE = (500, 1000)


def main() -> None:
  """Prints the counts."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--flips", type=int, default=100)
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  arrays = {"kernel": jnp.float32(rng.normal(size=SHAPE))}
  saved = fingerprints.of(arrays)
  counts = dict.fromkeys(("told", "unseen", "found", "same"), 0)
  with (
    tempfile.TemporaryDirectory() as folder,
    ocp.StandardCheckpointer() as checkpointer,
  ):
    path = pathlib.Path(folder) / "saved"
    checkpointer.save(path, arrays)
    checkpointer.wait_until_finished()
    largest = max(path.rglob("d/*"), key=os.path.getsize)
    whole = largest.read_bytes()
    for _ in range(args.flips):
      data = bytearray(whole)
      data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
      largest.write_bytes(data)
      try:
        found = checkpointer.restore(path, jax.tree.map(_abstract, arrays))
      except (OSError, ValueError):
        counts["told"] += 1
        continue
      if np.array_equal(found["kernel"], arrays["kernel"]):
        counts["same"] += 1
        continue
      counts["unseen"] += 1
      counts["found"] += fingerprints.of(found) != saved
  print(
    f"{args.flips} flipped bits in {len(whole):,} bytes: the reader told "
    f"{counts['told']}, {counts['same']} changed nothing, "
    f"{counts['unseen']} gave other numbers without a word; the fingerprints "
    f"found {counts['found']} of those."
  )


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


if __name__ == "__main__":
  main()
