"""The pipeline over built shards: the same batches from any process, again."""

import hashlib
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import imports
import numbered
import numpy as np
import pytest

from rcmed_jax.data import pipeline, tokens
from rcmed_jax.data.augment import AugmentConfig
from rcmed_jax.data.checks import Quarantine
from rcmed_jax.data.mixture import Mixture
from rcmed_jax.data.shards import Shards
from rcmed_jax.data.tokens import IGNORE_LABEL
from rcmed_jax.ingest.building import build
from rcmed_jax.ingest.building.build import Input

SIZE, ROWS, STEPS = 32, 8, 30
WANTED = numbered.expected(0, 40)
# Everything that is drawn, drawn.
TOLD = dict(
  max_targets=4,
  lengths=(128, 512),
  mask_size=16,
  negative_share=0.3,
  noise_share=0.1,
  temperature=2.0,
  augment=AugmentConfig(mirror=True, rotation_degrees=10, gamma=0.2),
)

# Reads and notes batch after batch, until it is killed or has read them all.
PROGRAM = """
import json, os, sys
import pipeline_shards_test as test
from rcmed_jax.data import tokens

folder, tokenizer, notes, process, processes, delay = sys.argv[1:]
test.read_on(test.pathlib.Path(folder), tokens.Tokenizer(tokenizer),
             test.pathlib.Path(notes), int(process), int(processes),
             float(delay))
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  out = tmp_path_factory.mktemp("original") / "set"
  inputs = [
    Input("train", numbered.Source(0, 40)),
    Input("more", numbered.Source(100, 112)),
  ]
  build.build(inputs, out, {}, shard_units=6)
  return out


@pytest.fixture(scope="module")
def model(original, tmp_path_factory):
  """File of a tokenizer, trained on what is built."""
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  tokens.train_tokenizer(pipeline.corpus(opened(original)), 600, path)
  return path


@pytest.fixture(scope="module")
def tokenizer(model):
  return tokens.Tokenizer(model)


def opened(folder):
  return Mixture([Shards(folder, "train"), Shards(folder, "more")], (3, 1))


def batches(
  items, tokenizer, quarantine, process=0, processes=1, rows=ROWS, **told
):
  return pipeline.Pipeline(
    items,
    tokenizer,
    pipeline.DataConfig(**{**TOLD, **told}),
    image_size=SIZE,
    batch_size=rows,
    quarantine=Quarantine(quarantine),
    process=process,
    processes=processes,
  )


def digests(batch):
  """One of each row, over all its arrays."""
  return [
    hashlib.sha256(
      b"".join(batch[name][b].tobytes() for name in sorted(batch))
    ).hexdigest()
    for b in range(len(batch["record_B"]))
  ]


def read_on(folder, tokenizer, notes, process, processes, delay_s):
  """Notes each batch by its number; goes on from its own state, or `start`."""
  notes.mkdir(exist_ok=True)
  name = f"quarantine-{process}.jsonl"
  made = batches(opened(folder), tokenizer, notes / name, process, processes)
  mine, step = notes / f"state-{process}.json", 0
  state = mine if mine.exists() else notes / "start.json"
  if state.exists():
    step, saved = json.loads(state.read_text())
    made.set_state(saved)
  print("reading", flush=True)
  for number in range(step, STEPS):
    found = json.dumps(digests(next(made)))
    note = notes / f"{number:03d}-{process}-of-{processes}"
    # A batch that was read but not yet counted comes again, the same.
    assert not note.exists() or note.read_text() == found
    _replace(note, found)
    _replace(mine, json.dumps([number + 1, made.get_state()]))
    print(number, flush=True)
    time.sleep(delay_s)


def _replace(path, text):
  new = path.with_suffix(f".new{path.name}")
  new.write_text(text)
  new.replace(path)


def noted(notes):
  """Step -> digests of the whole batch, however many processes read it."""
  found = {}
  for step in range(STEPS):
    paths = sorted(notes.glob(f"{step:03d}-*-of-*"))
    for processes in {path.name.split("-")[-1] for path in paths}:
      parts = [path for path in paths if path.name.endswith(f"-{processes}")]
      if len(parts) == int(processes):
        rows = [row for part in parts for row in json.loads(part.read_text())]
        assert found.setdefault(step, rows) == rows
  return found


@pytest.fixture(scope="module")
def sequence(original, tokenizer, tmp_path_factory):
  """Digests of the uninterrupted sequence, step by step."""
  path = tmp_path_factory.mktemp("sequence") / "quarantine.jsonl"
  made = batches(opened(original), tokenizer, path)
  return {step: digests(next(made)) for step in range(STEPS)}


def test_rows_are_the_triplets_that_were_built(original, tokenizer, tmp_path):
  items = Shards(original, "train")
  made = batches(
    items,
    tokenizer,
    tmp_path / "q",
    rows=len(items),
    noise_share=0.0,
    temperature=1.0,
    augment=AugmentConfig(),
  )
  batch = next(made)
  assert sorted(batch["record_B"]) == list(range(len(WANTED)))
  for b, record in enumerate(batch["record_B"]):
    one = WANTED[record]
    shape = one.image_IJC.shape
    assert batch["extent_B2"][b].max() == SIZE
    # 24 x 20 pixels fill 32 x 27 of the frame, which keeps their mean.
    rows, columns = batch["extent_B2"][b]
    assert (rows, columns) == (32, round(32 * shape[1] / shape[0]))
    shown = batch["pixels_BIJC"][b, :rows, :columns].mean()
    assert shown == pytest.approx(one.image_IJC.mean(), abs=3)


def test_negatives_are_of_the_same_modality_and_dataset(original, tokenizer):
  table = Mixture(
    [Shards(original, "train"), Shards(original, "more")], (1, 1)
  ).class_table()
  wanted = WANTED + numbered.expected(100, 112)
  for (dataset, modality), names in table.items():
    assert set(names) == {
      name
      for one in wanted
      if (one.source, one.modality) == (dataset, modality)
      for name in one.classes
    }


def test_nothing_that_has_a_side_is_mirrored(original, tokenizer, tmp_path):
  items = Shards(original, "train")
  plain, mirrored = (
    batches(
      items,
      tokenizer,
      tmp_path / f"q{mirror}",
      temperature=1.0,
      noise_share=0.0,
      augment=AugmentConfig(mirror=mirror),
    )
    for mirror in (False, True)
  )
  moved, sided = 0, 0
  for _ in range(25):
    one, other = next(plain), next(mirrored)
    # What is asked and answered is the same.
    np.testing.assert_array_equal(one["tokens_BT"], other["tokens_BT"])
    for b, record in enumerate(one["record_B"]):
      ids_T = one["tokens_BT"][b][: one["length_B"][b]]
      text = tokenizer.decode(ids_T[ids_T != tokenizer.end_id])
      has_side = "left" in text or items[int(record)].modality != "pathology"
      same = np.array_equal(one["pixels_BIJC"][b], other["pixels_BIJC"][b])
      if has_side:
        assert same
        np.testing.assert_array_equal(
          one["masks_BGIJ"][b], other["masks_BGIJ"][b]
        )
        sided += "left" in text and items[int(record)].modality == "pathology"
      moved += not same
  assert moved > 5 and sided > 5


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_global_batches(
  original, tokenizer, tmp_path, sequence, processes
):
  parts = [
    batches(opened(original), tokenizer, tmp_path / f"q{p}", p, processes)
    for p in range(processes)
  ]
  for step in range(4):
    rows = [row for part in parts for row in digests(next(part))]
    assert rows == sequence[step]


def test_two_processes_become_four(original, tokenizer, tmp_path, sequence):
  two = [
    batches(opened(original), tokenizer, tmp_path / f"q{p}", p, 2)
    for p in range(2)
  ]
  for _ in range(3):
    for part in two:
      next(part)
  state = json.loads(json.dumps(two[0].get_state()))
  four = [
    batches(opened(original), tokenizer, tmp_path / f"q{p}", p, 4)
    for p in range(4)
  ]
  for part in four:
    part.set_state(state)
  for step in (3, 4):
    assert [row for part in four for row in digests(next(part))] == sequence[
      step
    ]


@pytest.mark.parametrize("kind", ["examples", "headers"])
def test_damaged_records_are_blank_rows_and_named(
  original, tokenizer, tmp_path, kind
):
  folder = pathlib.Path(shutil.copytree(original, tmp_path / "set"))
  name = (
    "rcmed-train.array_record-00001"
    if kind == "examples"
    else "headers/rcmed-train-00001"
  )
  data = bytearray((folder / name).read_bytes())
  place = 5000 if kind == "examples" else 2000
  data[place : place + 16] = bytes(16)
  (folder / name).write_bytes(data)
  items = Shards(folder, "train")
  quarantine = tmp_path / "quarantine.jsonl"
  made = batches(
    items, tokenizer, quarantine, temperature=1.0, noise_share=0.0, rows=4
  )
  blank, good = set(), set()
  for _ in range(-(-2 * len(items) // 4)):
    batch = next(made)
    for b, record in enumerate(batch["record_B"]):
      if record >= 0:
        good.add(int(record))
      else:
        assert (batch["labels_BT"][b] == IGNORE_LABEL).all()
        blank.add(b)
  lines = quarantine.read_text().splitlines()
  paths = {json.loads(line)["path"] for line in lines}
  assert blank and all(path.startswith(f"{folder / name}[") for path in paths)
  assert len(good) + len(paths) == len(items)


def started(original, model, notes, program, process=0, processes=1):
  roots = imports.ROOT, imports.ROOT / "tests", pathlib.Path(__file__).parent
  return subprocess.Popen(
    [
      *(sys.executable, program, original, model, notes),
      *map(str, (process, processes, 0.02)),
    ],
    env={
      "PYTHONPATH": ":".join(map(str, roots)),
      "PATH": "/usr/bin:/bin",
      "JAX_PLATFORMS": "cpu",
    },
    stdout=subprocess.PIPE,
    text=True,
  )


def kill_after(process, count, delay_s):
  """Kills without warning once so many batches were noted."""
  for _ in range(1 + count):
    process.stdout.readline()
  time.sleep(delay_s)
  process.send_signal(signal.SIGKILL)
  process.communicate()


@pytest.fixture
def program(tmp_path):
  path = tmp_path / "program.py"
  path.write_text(PROGRAM)
  return path


@pytest.mark.heavy
def test_killed_at_ten_moments_the_sequence_is_the_same(
  original, model, tmp_path, program, sequence
):
  notes, moments = tmp_path / "notes", random.Random(0)
  for _ in range(10):
    process = started(original, model, notes, program)
    kill_after(process, moments.randrange(4), moments.uniform(0, 0.05))
  before = len(noted(notes))
  assert before < STEPS
  process = started(original, model, notes, program)
  process.communicate()
  assert process.returncode == 0
  assert noted(notes) == sequence


@pytest.mark.heavy
def test_two_killed_processes_go_on_as_four(
  original, model, tmp_path, program, sequence
):
  notes = tmp_path / "notes"
  two = [started(original, model, notes, program, p, 2) for p in range(2)]
  kill_after(two[0], 6, 0.01)
  kill_after(two[1], 4, 0.0)
  assert noted(notes)
  # One state serves all four; here that of the one that came less far.
  states = sorted(
    notes.glob("state-?.json"),
    key=lambda path: json.loads(path.read_text())[0],
  )
  assert 0 < json.loads(states[0].read_text())[0] < STEPS
  states[1].unlink()
  states[0].rename(notes / "start.json")
  for p in range(4):
    process = started(original, model, notes, program, p, 4)
    process.communicate()
    assert process.returncode == 0
  assert noted(notes) == sequence
