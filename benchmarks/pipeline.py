"""Samples a second from 1024 x 1024 pixels on disk to finished batches.

  make reference
  .venv/bin/python benchmarks/pipeline.py --rounds 5

Three readers of the same drawn images and masks take turns, each in a process
of its own, on as many cores as it has workers:

  PyTorch's DataLoader over loose PNG files,
  our pipeline over the same loose PNG files,
  our pipeline over shards that `rcmed data build` made of them.

All draw prompts and tokenise with the same functions, and decode, resize and
pad with the same OpenCV calls (`data/images.py`), one OpenCV thread each. Wall
time alone says little on a busy machine; CPU seconds, of workers too, are what
a core has to give. The files are in the page cache. Random access without
decoding is timed apart.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import cv2
import numpy as np

from rcmed_jax.apps import data_sources
from rcmed_jax.data import images, phantoms, pipeline, prompts, readers, tokens
from rcmed_jax.data.checks import Quarantine
from rcmed_jax.data.shards import Shards
from rcmed_jax.ingest.building import build

SIZE = 1024  # pixels a side, of the files and of the model's frame
LENGTHS = (513,)  # as the release pads
TARGETS = 8
HOST_SAMPLES = 48  # a second, for eight GPUs at six each

CASES = ("torch, PNG files", "ours, PNG files", "ours, shards")


def main() -> None:
  """Runs all cases in turns and prints the tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--images", type=int, default=27, help="drawn, of nine")
  parser.add_argument("--batch", type=int, default=4)
  parser.add_argument("--samples", type=int, default=108, help="a round")
  parser.add_argument("--workers", type=int, default=1)
  parser.add_argument("--folder", type=pathlib.Path, help="to keep the images")
  parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.samples % args.images or args.samples % args.batch:
    parser.error("--samples must be whole epochs and whole batches")
  if args.case:
    print(json.dumps(_measure(args)))
    return
  with tempfile.TemporaryDirectory() as temporary:
    args.folder = args.folder or pathlib.Path(temporary)
    _prepare(args.folder, args.images)
    rounds: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    for _ in range(args.rounds):
      for case in CASES:
        rounds[case].append(_apart(case, args))
    _report(rounds, args)
    _random_access(args.folder)


def _prepare(folder: pathlib.Path, count: int) -> None:
  index = folder / "image2label_train.json"
  if not index.exists():
    phantoms.write(folder, count, seed=0, size=SIZE)
  parser = argparse.ArgumentParser()
  data_sources.add_arguments(parser)
  (opened,) = data_sources.open_all(parser.parse_args([str(index)]))
  build.build([build.Input("train", opened[2])], folder / "shards", {})
  records = readers.read_index(index)
  path = folder / "tokenizer.model"
  if not path.exists():
    tokens.train_tokenizer(pipeline.corpus(records), 1024, path)
  loose = sum(
    os.path.getsize(path)
    for record in records
    for path in (record.image, *(mask for mask, _ in record.masks))
  )
  built = sum(p.stat().st_size for p in (folder / "shards").glob("rcmed-*"))
  masks = sum(len(record.masks) for record in records) / len(records)
  print(
    f"{len(records)} images of {SIZE} x {SIZE}, {masks:.2f} masks each; "
    f"{loose / len(records) / 1e6:.2f} MB an image in loose files, "
    f"{built / len(records) / 1e6:.2f} MB in shards"
  )


def _apart(case: str, args: argparse.Namespace) -> dict[str, float]:
  """What a fresh process measures, held to as many cores as workers."""
  cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: args.workers]))
  told = ("samples", "images", "batch", "workers", "folder")
  done = subprocess.run(
    [
      *("taskset", "-c", cores, sys.executable, __file__, "--case", case),
      *(f"--{name}={getattr(args, name)}" for name in told),
    ],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


def _measure(args: argparse.Namespace) -> dict[str, float]:
  """Wall and CPU seconds a sample, and a sum that all cases must share."""
  cv2.setNumThreads(1)
  steps = args.samples // args.batch
  make = _torch_batches if args.case == CASES[0] else _our_batches
  for batch in make(args, 1):  # imports, caches, and the first of everything
    del batch
  before, start = _cpu_s(), time.perf_counter()
  total = 0
  for batch in make(args, steps):
    total += int(np.asarray(batch["pixels_BIJC"][:, ::64, ::64]).sum())
  wall = time.perf_counter() - start
  return {
    "wall": wall / args.samples,
    "cpu": (_cpu_s() - before) / args.samples,
    "sum": total,
  }


def _cpu_s() -> float:
  """User and system seconds of this process and its finished children."""
  told = map(
    resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return sum(one.ru_utime + one.ru_stime for one in told)


def _our_batches(args: argparse.Namespace, steps: int) -> Any:
  shards = args.case == CASES[2]
  index = args.folder / "image2label_train.json"
  made = pipeline.Pipeline(
    Shards(args.folder / "shards") if shards else readers.read_index(index),
    tokens.Tokenizer(args.folder / "tokenizer.model"),
    pipeline.DataConfig(
      lengths=LENGTHS, max_targets=TARGETS, threads=args.workers
    ),
    image_size=SIZE,
    batch_size=args.batch,
    quarantine=Quarantine(args.folder / "quarantine.jsonl"),
  )
  for _ in range(steps):
    yield next(made)


class LooseFiles:
  """A dataset as PyTorch has it: a sample an index, arrays of fixed shapes."""

  def __init__(self, folder: pathlib.Path):
    self.records = readers.read_index(folder / "image2label_train.json")
    self.siblings = readers.class_table(self.records)
    self.tokenizer = tokens.Tokenizer(folder / "tokenizer.model")
    self.config = pipeline.DataConfig()

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    record = self.records[index]
    rng = np.random.default_rng(index)
    present = set(record.classes)
    names = self.siblings[record.dataset, record.modality]
    asked = prompts.draw(
      rng,
      record.classes,
      [name for name in names if name not in present],
      record.modality,
      weights=self.config.prompt_weights,
      described=False,
      most=TARGETS,
    )
    tokens_T, labels_T = self.tokenizer.encode_answer(
      prompts.conversation(asked.question, describe=asked.describe),
      prompts.answer(record.modality, asked.present, asked.absent),
    )
    tokens_BT, length_B = tokens.pad([tokens_T], LENGTHS)
    labels_BT, _ = tokens.pad([labels_T], LENGTHS, tokens.IGNORE_LABEL)
    triplet = record.load()
    pixels_IJC, extent_2 = images.prepare(triplet.image_IJC, SIZE)
    side = self.config.mask_size
    masks_GIJ = np.zeros((TARGETS, side, side), np.uint8)
    for name, mask_IJ in zip(triplet.classes, triplet.masks_GIJ, strict=True):
      small_IJ = images.prepare_mask(mask_IJ, side)
      if name in asked.present:
        masks_GIJ[asked.present.index(name)] = small_IJ
    return {
      "pixels_BIJC": pixels_IJC,
      "extent_B2": extent_2,
      "tokens_BT": tokens_BT[0],
      "labels_BT": labels_BT[0],
      "length_B": length_B[0],
      "masks_BGIJ": masks_GIJ,
    }


def _torch_batches(args: argparse.Namespace, steps: int) -> Any:
  import torch

  torch.set_num_threads(1)
  data = LooseFiles(args.folder)
  order = [
    int(index)
    for epoch in range(-(-steps * args.batch // len(data)))
    for index in np.random.default_rng(epoch).permutation(len(data))
  ]
  loader = torch.utils.data.DataLoader(
    data,
    batch_size=args.batch,
    sampler=order[: steps * args.batch],
    num_workers=args.workers,
    prefetch_factor=2,
    worker_init_fn=_start_worker,
  )
  yield from loader


def _start_worker(number: int) -> None:
  del number
  cv2.setNumThreads(1)


def _report(
  rounds: dict[str, list[dict[str, float]]], args: argparse.Namespace
) -> None:
  sums = {case: {one["sum"] for one in found} for case, found in rounds.items()}
  assert len(set.union(*sums.values())) == 1, f"batches differ: {sums}"
  base = rounds[CASES[0]]
  print(
    f"{args.rounds} rounds, batches of {args.batch}, {args.workers} workers"
  )
  print(
    "case | CPU ms | samples/s a core | times torch | wall ms | times torch"
  )
  for case, found in rounds.items():
    columns = [case]
    for key in ("cpu", "wall"):
      middle = statistics.median(one[key] for one in found)
      ratio = statistics.median(
        theirs[key] / ours[key]
        for theirs, ours in zip(base, found, strict=True)
      )
      columns.append(f"{middle * 1e3:.1f}")
      if key == "cpu":
        columns.append(f"{1 / middle:.1f}")
      columns.append(f"{ratio:.2f}")
    cpu = statistics.median(one["cpu"] for one in found)
    print(*columns, f"{HOST_SAMPLES * cpu:.2f} cores a host", sep=" | ")


def _random_access(folder: pathlib.Path) -> None:
  """Bytes of a sample in random order, not decoded.

  In a process that has decoded before, as a pipeline's has: glibc then keeps
  freed megabytes, where a fresh process gives them back and faults them in
  again each time.
  """
  records = readers.read_index(folder / "image2label_train.json")
  built = Shards(folder / "shards")
  for record in records:
    record.load()
  places = np.random.default_rng(0).integers(0, len(records), 2000)

  def loose(place: int) -> None:
    record = records[place]
    for path in (record.image, *(mask for mask, _ in record.masks)):
      pathlib.Path(path).read_bytes()

  for name, read in (
    ("loose PNG files", loose),
    ("a shard's example", built.example),
    ("a shard's header", built.__getitem__),
  ):
    times = []
    for _ in range(3):
      start = time.thread_time()
      for place in places:
        read(int(place))
      times.append((time.thread_time() - start) / len(places))
    print(f"random access, {name}: {min(times) * 1e6:.0f} us CPU a sample")


if __name__ == "__main__":
  main()
