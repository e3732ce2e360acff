"""The same files from one device and from many, whatever is under way."""

import dataclasses
import functools

from flax import nnx
import jax
import numpy as np
import pytest
import toy

from rcmed_jax.apps import answering
from rcmed_jax.data import phantoms, pipeline, readers, tokens
from rcmed_jax.eval import report
from rcmed_jax.eval.evaluate import EvalConfig, evaluate
from rcmed_jax.model import int8, rcmed
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import rules
from rcmed_jax.serve.assistant import Assistant, Question, Sampling

SAMPLES = 101
LENGTHS = (112, 128, 160)
CONFIG = EvalConfig(
  protocols=("named", "open"),
  controls=(),
  classes_per_question=1,
  bootstrap=100,
  chunk=40,
  gallery=1,
  worst=2,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Drawn images, a tokenizer, and a model that has learnt nothing."""
  folder = tmp_path_factory.mktemp("world")
  phantoms.write(folder, SAMPLES, seed=0, size=64)
  items = readers.read_index(folder / "image2label_train.json")
  path = folder / "tokenizer.model"
  tokenizer = tokens.train_tokenizer(pipeline.corpus(items), 640, path)
  config = toy.model_config(correlation_steps=1)
  config = dataclasses.replace(
    config,
    language=dataclasses.replace(
      config.language, vocabulary=tokenizer.vocabulary
    ),
  )
  return items, tokenizer, rcmed.RCMed(config, rngs=nnx.Rngs(0))


def assistant(world, devices):
  """Answers with all classes of one image as new ones, in given words.

  What a random model says holds no [SEG]; a class that it is shown has a mask.
  """
  items, tokenizer, model = world
  graphdef, weights = nnx.split(model)
  mesh = meshes.make_mesh(
    meshes.MeshConfig(data=devices), jax.devices()[:devices]
  )
  weights = jax.device_put(weights, rules.replicated(mesh))
  make = functools.partial(
    Assistant,
    nnx.merge(graphdef, weights),
    tokenizer,
    image_size=toy.IMAGE_SIZE,
    lengths=LENGTHS,
    rows=8,
    max_new=8,
    max_targets=2,
  )
  teacher = make()
  classes = {}
  for item in items:
    triplet = item.load()
    everywhere_IJ = np.ones(triplet.image_IJC.shape[:2], bool)
    for name in triplet.classes:
      # A question that names a liver tumor names a liver as well.
      apart = not any(name in one or one in name for one in classes)
      if apart and len(classes) < 9:
        example = (triplet.image_IJC, everywhere_IJ)
        classes[name] = teacher.learn(name, triplet.modality, [example])
  return make(classes=tuple(classes.values()))


@pytest.mark.heavy
def test_devices_and_requests_under_way_change_no_byte(world, tmp_path):
  """1, 3 and 8 devices, 1, 4 and 7 requests under way, 101 samples."""
  outputs = {}
  for devices in (1, 3, 8):
    answers = assistant(world, devices)
    for under_way in (1, 4, 7):
      folder = tmp_path / f"{devices}-{under_way}"
      ask = functools.partial(answering.answers, answers, under_way=under_way)
      found = evaluate(world[0], ask, CONFIG, folder)
      assert found.images == SAMPLES
      report.write_pages(folder, found)
      outputs[devices, under_way] = {
        path.name: path.read_bytes() for path in folder.iterdir()
      }
  wanted = outputs.pop((1, 1))
  assert b"Median" in wanted["index--test.html"]
  assert wanted["metrics--test.jsonl"].count(b'"present": true') > SAMPLES / 2
  for files in outputs.values():
    assert files == wanted


@pytest.mark.heavy
@pytest.mark.parametrize("in_int8", [False, True])
def test_weights_in_parts_say_the_same_as_on_one_device(world, in_int8):
  """Told as it grows or not, greedy or drawn, after images were kept."""
  items, tokenizer, model = world
  graphdef, weights = nnx.split(model)
  questions = [
    Question(
      item.load().image_IJC,
      "Where is the liver?",
      sampling=Sampling(temperature=number % 2, seed=number, grammar=True),
    )
    for number, item in enumerate(items[:12])
  ]
  said = []
  for sizes in (None, meshes.MeshConfig(data=2, fsdp=2, tensor=2)):
    held = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf, weights))
    if sizes is not None:
      arrays = answering._by_name(nnx.to_pure_dict(nnx.state(held)))
      held = answering._placed(held, meshes.make_mesh(sizes), arrays)
    if in_int8:
      int8.quantize(held)
    answers = Assistant(
      held,
      tokenizer,
      image_size=toy.IMAGE_SIZE,
      lengths=LENGTHS,
      rows=2,
      max_new=8,
    )
    said.append([one.text for one in answers.ask_many(questions)])
    told = []
    again = dict(
      answers.stream(
        questions, told=lambda *words, told=told: told.append(words)
      )
    )
    assert [again[number].text for number in range(12)] == said[-1]
    assert len(told) > len(questions)
  assert said[0] == said[1]
