"""The assistant of a run: its newest weights, tokenizer and static shapes."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

from etils import epath
from flax import nnx
import jax
import numpy as np

from rcmed_jax.apps import runs, settings
from rcmed_jax.convert import store, torch_io
from rcmed_jax.data import tokens
from rcmed_jax.eval import temperature
from rcmed_jax.eval.protocols import EvalConfig, Request
from rcmed_jax.model import int8, rcmed
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import rules
from rcmed_jax.serve import assistant as assistants
from rcmed_jax.serve import new_classes
from rcmed_jax.serve.assistant import Answer, Question
from rcmed_jax.train import checkpoints

# Of confidences, in the folder of a run, once it was fitted.
TEMPERATURE = "temperature.json"


def load_assistant(
  workdir: str | os.PathLike[str],
  *,
  rows: int = 1,
  asked: EvalConfig | None = None,
  classes: Sequence[pathlib.Path] = (),
  in_int8: bool = False,
  mesh: meshes.MeshConfig | None = None,
  fitted: epath.PathLike | None = None,
  calibrated: bool = True,
  averaged: bool = False,
  best: bool = False,
  kept: int = 2,
) -> "Assistant":
  """The assistant of a run's newest checkpoint, or of converted weights.

  Args:
    workdir: of either.
    rows: requests that a device answers together.
    asked: how long answers may be and when a target is there; None: as
      recorded.
    classes: files of new classes, which `rcmed adapt` wrote.
    in_int8: whether the language model's layers are held in 8 bits.
    fitted: file of a temperature, where there is one, that confidences get;
      None: the run's own.
    calibrated: whether confidences get it.
    averaged: whether a run answers with its averaged weights.
    best: whether with those of the step that did best on its held-out set.
    kept: images that are remembered; see `Assistant`.
    mesh: of this process's devices, over which weights and batches lie; None:
      one of them.

  Raises:
    FileNotFoundError: as `runs.recorded`, or a class file is missing.
    ValueError: as `runs.recorded`, the run has no checkpoint yet, or no average
      of its weights, or none known to be best, a class was made with other
      weights, or the devices do not make such a mesh.
  """
  workdir = epath.Path(workdir)
  told = runs.recorded(workdir)
  if asked is not None:
    told = dataclasses.replace(told, eval=asked)
  tokenizer = tokens.Tokenizer(workdir / runs.TOKENIZER)
  folder = runs.converted(workdir)
  places = mesh and meshes.make_mesh(mesh, jax.local_devices())
  model = nnx.eval_shape(lambda: rcmed.RCMed(told.model, rngs=nnx.Rngs(0)))
  if folder is not None:
    runs.refuse_choice(folder, averaged=averaged, best=best)
    tensors = store.read(folder).tensors
    if places is None:
      model = torch_io.build(told.model, torch_io.nested(tensors))
    else:
      model = _placed(model, places, tensors)
  else:
    graphdef, state = nnx.split(model)
    with checkpoints.Checkpoints(workdir) as saved:
      arrays = saved.weights(
        places and _by_name(rules.param_shardings(state, places)[0]),
        averaged=averaged,
        step=saved.chosen(best=best),
      )
      model = nnx.merge(graphdef, arrays)
  if in_int8:
    int8.quantize(model)
  known = [new_classes.load(path) for path in classes]
  return make_assistant(
    model,
    tokenizer,
    told,
    rows=rows,
    classes=known,
    kept=kept,
    calibrate=_calibration(fitted or workdir / TEMPERATURE)
    if calibrated
    else float,
  )


class Assistant(assistants.Assistant):
  """An assistant, and where it comes from: `Assistant.load(workdir)`."""

  load = staticmethod(load_assistant)


def _placed(
  model: rcmed.RCMed,
  mesh: jax.sharding.Mesh,
  tensors: Mapping[str, Any],
) -> rcmed.RCMed:
  """The model, its weights in parts as in training, from one array at a time.

  Args:
    model: of shapes; what the tensors lack stays one.
    tensors: by dotted path.
  """
  graphdef, state = nnx.split(model)
  shardings = _by_name(rules.param_shardings(state, mesh)[0])
  held = nnx.traversals.flatten_mapping(
    nnx.to_pure_dict(jax.eval_shape(rules.padded, state))
  )
  for path, leaf in held.items():
    name = ".".join(map(str, path))
    if name not in tensors:
      continue
    values = tensors[name]
    more = [(0, m - n) for n, m in zip(values.shape, leaf.shape, strict=True)]
    whole = np.pad(np.asarray(values), more)
    held[path] = jax.device_put(whole, shardings[name])
  return nnx.merge(graphdef, nnx.traversals.unflatten_mapping(held))


def _by_name(nested: Mapping[str, Any]) -> dict[str, Any]:
  """Leaves by dotted path."""
  return {
    ".".join(map(str, path)): leaf
    for path, leaf in nnx.traversals.flatten_mapping(nested).items()
  }


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds what all commands that answer ask about weights; see `weights`."""
  parser.add_argument(
    "--classes",
    type=pathlib.Path,
    action="append",
    default=[],
    metavar="CLASS.npz",
    help="a new class from `rcmed adapt`; may be given several times",
  )
  parser.add_argument(
    "--int8",
    action="store_true",
    help="hold the language model in 8 bits, a quarter of float32's memory",
  )
  parser.add_argument(
    "--mesh",
    type=_mesh,
    metavar="data=8",
    help="lay weights and batches over several devices of each process; "
    "default: one device",
  )
  runs.add_choice_flags(parser)


def _mesh(text: str) -> meshes.MeshConfig:
  try:
    return meshes.parse(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def loading(args: argparse.Namespace) -> dict[str, Any]:
  """What `load_assistant` takes of those flags."""
  return weights(args) | {"mesh": args.mesh}


def weights(args: argparse.Namespace) -> dict[str, Any]:
  """What `provenance` takes of them, too: not where the weights lie."""
  return {
    "classes": args.classes,
    "in_int8": args.int8,
    "averaged": args.averaged,
    "best": args.best,
  }


def make_assistant(
  model: rcmed.RCMed,
  tokenizer: tokens.Tokenizer,
  told: settings.Settings,
  *,
  rows: int = 1,
  classes: Sequence[new_classes.NewClass] = (),
  calibrate: Callable[[float], float] = float,
  kept: int = 2,
) -> Assistant:
  """An assistant around a model, with the run's static shapes."""
  return Assistant(
    model,
    tokenizer,
    image_size=told.model.image.image_size,
    lengths=told.data.lengths,
    rows=rows,
    max_new=told.eval.max_new,
    max_targets=told.data.max_targets,
    present_quality=told.eval.present_quality,
    classes=classes,
    calibrate=calibrate,
    kept=kept,
  )


def _calibration(fitted: epath.PathLike) -> Callable[[float], float]:
  """What a temperature makes of a confidence; nothing where there is none."""
  if not epath.Path(fitted).exists():
    return float
  found = temperature.load(fitted)
  return lambda confidence: float(found.apply([confidence])[0])


def answers(
  assistant: assistants.Assistant,
  requests: Iterable[Request],
  *,
  under_way: int = 1,
) -> Iterator[tuple[int, Answer]]:
  """Evaluation's requests, answered by an assistant.

  Args:
    under_way: requests that are with the devices, at least.
  """
  questions = (
    Question(
      request.image_IJC, request.question, describe=request.classes is None
    )
    for request in requests
  )
  return assistant.stream(questions, ahead=-(-under_way // assistant.rows))
