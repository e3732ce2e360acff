"""Time and memory of `rcmed convert` on a checkpoint of the released shapes.

  python benchmarks/convert_memory.py --scale 1.0 --folder /tmp

Random bits under the release's names: language model bfloat16, the rest
float32; 16.3 GB at scale 1. A smaller scale has fewer layers of the language
model. It is imported, its source deleted, and exported again, each in a process
of its own; the exported files must be those of the source bit for bit. Needs
twice the checkpoint's size on disk, and deletes what it wrote.

Measured at scale 1 on two cores shared with a training run, checksums included:
import 108 s, export 138 s, peak 0.77 GB each.
"""

import argparse
import dataclasses
import functools
import multiprocessing
import pathlib
import resource
import shutil
import tempfile
import time

import ml_dtypes
import numpy as np

from rcmed_jax import cli
from rcmed_jax.convert import (
  fit,
  json_file,
  names,
  names_language,
  sizes,
  stream,
)
from rcmed_jax.convert.tensors import Array
from rcmed_jax.model.config import ModelConfig

# Headers and journals beside the numbers.
SLACK_BYTES = 1 << 28


def main() -> None:
  """Makes, imports, deletes, exports, compares."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--scale", type=float, default=1.0)
  parser.add_argument("--folder", type=pathlib.Path, default=None)
  args = parser.parse_args()
  full = ModelConfig(channel_order="bgr")
  depth = max(1, round(full.language.depth * args.scale))
  config = dataclasses.replace(
    full, language=dataclasses.replace(full.language, depth=depth)
  )
  files = stream.split(_random(config), "model")
  total = sum(array.nbytes for some in files.values() for array in some)
  with tempfile.TemporaryDirectory(dir=args.folder) as name:
    folder = pathlib.Path(name)
    free = shutil.disk_usage(folder).free
    if free < 2 * total + SLACK_BYTES:
      parser.error(f"needs {2 * total:,} bytes in {folder}, {free:,} are free")
    print(f"checkpoint of {total / 1e9:.1f} GB, {depth} layers", flush=True)
    source, ours, back = folder / "source", folder / "ours", folder / "back"
    _apart(_make, source, config)
    made = stream.digests(source.glob("*.safetensors"))
    _apart(_run, "import", "--from", "syre", str(source), str(ours))
    shutil.rmtree(source)
    _apart(_run, "export", str(ours), str(back))
    same = stream.digests(back.glob("*.safetensors")) == made
    print(f"import and export give back the same bits: {same}")


def _random(config: ModelConfig) -> list[Array]:
  """Every tensor of the release, made when it is written."""
  language = {entry.release for entry in names_language.entries(config)}
  entries = names.entries(config)
  shapes = {
    path: np.broadcast_to(np.float32(0), shape)
    for path, shape in fit.shapes(config).items()
  }
  arrays = []
  for seed, array in enumerate(fit.to_release(entries, shapes)):
    half = array.name in language and array.name.startswith(
      ("model.layers", "model.norm", "model.embed", "lm_head")
    )
    dtype = np.dtype(ml_dtypes.bfloat16 if half else np.float32)
    pieces = {(): functools.partial(_bits, seed, dtype, array.shape)}
    arrays.append(Array(array.name, dtype, array.shape, pieces))
  return arrays


def _bits(seed: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
  rng = np.random.Generator(np.random.SFC64(seed))
  size = int(np.prod(shape)) * dtype.itemsize
  return np.frombuffer(rng.bytes(size), dtype).reshape(shape)


def _make(folder: pathlib.Path, config: ModelConfig) -> None:
  files = stream.split(_random(config), "model")
  with stream.folder(folder) as partial:
    stream.write(partial, files, {})
    json_file.write(partial / "config.json", sizes.to_release(config))


def _run(*command: str) -> None:
  begin = time.monotonic()
  if cli.main(["convert", *command]):
    raise SystemExit(1)
  seconds = time.monotonic() - begin
  # In kilobytes on Linux.
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(f"{command[0]}: {seconds:.1f} s, peak {peak / 1e9:.2f} GB", flush=True)


def _apart(call, *arguments) -> None:
  """Runs in a fresh process, so that its peak is its own."""
  process = multiprocessing.get_context("spawn").Process(
    target=call, args=arguments
  )
  process.start()
  process.join()
  if process.exitcode:
    raise SystemExit(f"{call.__name__} failed with {process.exitcode}")


if __name__ == "__main__":
  main()
