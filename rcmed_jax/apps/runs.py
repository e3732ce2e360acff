"""A run is a folder: everything that one training made and needs.

settings.json     what it was told
tokenizer.model   its SentencePiece model
checkpoints/, frozen/, metrics.jsonl, tensorboard/   see train/
quarantine.jsonl  data that could not be used
"""

import argparse
from collections.abc import Sequence
import dataclasses
import difflib
import pathlib
import shutil

from flax import nnx
import jax

from rcmed_jax.apps import settings
from rcmed_jax.convert import store, torch_io
from rcmed_jax.data import checks, pipeline, readers, records, tokens
from rcmed_jax.eval.protocols import EvalConfig, Request
from rcmed_jax.model import int8, rcmed
from rcmed_jax.parallel.mesh import MeshConfig
from rcmed_jax.serve import new_classes
from rcmed_jax.serve.assistant import Answer, Assistant, Question
from rcmed_jax.train import checkpoints
from rcmed_jax.train.loop import TrainConfig
from rcmed_jax.train.optimizer import OptimizerConfig

TOKENIZER = "tokenizer.model"
QUARANTINE = "quarantine.jsonl"

# Where runs go by default, and where the newest is looked for.
RUNS = pathlib.Path("runs")


@dataclasses.dataclass(frozen=True)
class Run:
  """An opened run: its folder, settings, records and tokenizer."""

  workdir: pathlib.Path
  settings: settings.Settings
  items: Sequence[records.Record]
  tokenizer: tokens.Tokenizer
  quarantine: checks.Quarantine

  def batches(self) -> pipeline.Pipeline:
    """A fresh iterator of this process's training batches."""
    return pipeline.Pipeline(
      self.items,
      self.tokenizer,
      self.settings.data,
      image_size=self.settings.model.image.image_size,
      batch_size=self.settings.train.batch_size,
      quarantine=self.quarantine,
      process=jax.process_index(),
      processes=jax.process_count(),
    )


def start(told: settings.Settings, workdir: pathlib.Path) -> Run:
  """Opens a run for training, new or begun, and records its settings.

  Raises:
    DataError: the index cannot be read.
    ValueError: the folder holds a run with other settings.
  """
  quarantine = checks.Quarantine(workdir / QUARANTINE)
  items = read_items(told, told.data.index, quarantine)
  workdir.mkdir(parents=True, exist_ok=True)
  tokenizer = _tokenizer(told.data, items, workdir)
  told = with_vocabulary(told, tokenizer)
  _require_same(told, workdir)
  settings.save(told, workdir)
  return Run(workdir, told, items, tokenizer, quarantine)


def read_items(
  told: settings.Settings,
  index: str | pathlib.Path,
  quarantine: checks.Quarantine,
  *,
  descriptions: str | None = None,
) -> list[records.Record]:
  """The records of an index, read as the settings ask."""
  if not index:
    raise ValueError(
      "config.data.index is empty; give --config.data.index=image2label.json. "
      "`rcmed data phantom` draws a data set to begin with."
    )
  return readers.read_index(
    index,
    told.data.descriptions if descriptions is None else descriptions,
    modality_words=dict(told.data.modality_words),
    quarantine=quarantine,
  )


def recorded(workdir: pathlib.Path) -> settings.Settings:
  """A run's settings; of a converted checkpoint, its model and defaults.

  Raises:
    FileNotFoundError: the folder is neither, or lacks its tokenizer.
    ValueError: it holds only parts of the model.
  """
  if not store.is_converted(workdir):
    require(workdir)
    return settings.load(workdir)
  held = store.read_whole(workdir)
  if not (workdir / TOKENIZER).is_file():
    raise FileNotFoundError(
      f"{workdir} has no {TOKENIZER}; copy LLaMA's there, or convert again "
      "with --tokenizer."
    )
  told = settings.Settings(
    data=pipeline.DataConfig(),
    model=held.model,
    optimizer=OptimizerConfig(),
    train=TrainConfig(),
    mesh=MeshConfig(),
    eval=EvalConfig(),
  )
  return with_vocabulary(told, tokens.Tokenizer(workdir / TOKENIZER))


def load_assistant(
  workdir: pathlib.Path,
  *,
  batch_size: int = 1,
  asked: EvalConfig | None = None,
  classes: Sequence[pathlib.Path] = (),
  in_int8: bool = False,
) -> Assistant:
  """The assistant of a run's newest checkpoint, or of converted weights.

  Args:
    workdir: of either.
    batch_size: requests answered together.
    asked: how long answers may be and when a target is there; None: as
      recorded.
    classes: files of new classes, which `rcmed adapt` wrote.
    in_int8: whether the language model's layers are held in 8 bits.

  Raises:
    FileNotFoundError: as `recorded`, or a class file is missing.
    ValueError: as `recorded`, the run has no checkpoint yet, or a class was
      made with other weights.
  """
  told = recorded(workdir)
  if asked is not None:
    told = dataclasses.replace(told, eval=asked)
  tokenizer = tokens.Tokenizer(workdir / TOKENIZER)
  if store.is_converted(workdir):
    arrays = torch_io.nested(store.read(workdir).tensors)
    model = torch_io.build(told.model, arrays)
  else:
    model = nnx.eval_shape(lambda: rcmed.RCMed(told.model, rngs=nnx.Rngs(0)))
    graphdef, _ = nnx.split(model)
    with checkpoints.Checkpoints(workdir) as saved:
      model = nnx.merge(graphdef, saved.weights())
  if in_int8:
    int8.quantize(model)
  known = [new_classes.load(path) for path in classes]
  return make_assistant(
    model, tokenizer, told, batch_size=batch_size, classes=known
  )


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of all commands that answer: --classes and --int8."""
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


def require(workdir: pathlib.Path) -> None:
  """Raises FileNotFoundError where a folder is no run."""
  if not (workdir / settings.RECORD).is_file():
    raise FileNotFoundError(
      f"{workdir} is not the folder of a run: it lacks {settings.RECORD}; "
      "give --workdir, the folder that rcmed train or rcmed demo wrote."
    )


def make_assistant(
  model: rcmed.RCMed,
  tokenizer: tokens.Tokenizer,
  told: settings.Settings,
  *,
  batch_size: int = 1,
  classes: Sequence[new_classes.NewClass] = (),
) -> Assistant:
  """An assistant around a model, with the run's static shapes."""
  return Assistant(
    model,
    tokenizer,
    image_size=told.model.image.image_size,
    lengths=told.data.lengths,
    batch_size=batch_size,
    max_new=told.eval.max_new,
    max_targets=told.data.max_targets,
    present_quality=told.eval.present_quality,
    classes=classes,
  )


def ask_many(assistant: Assistant, requests: Sequence[Request]) -> list[Answer]:
  """Evaluation's requests, answered by an assistant."""
  return assistant.ask_many(
    [
      Question(
        request.image_IJC, request.question, describe=request.classes is None
      )
      for request in requests
    ]
  )


def newest() -> pathlib.Path:
  """The newest run under `runs/`.

  Raises:
    FileNotFoundError: there is none.
  """
  found = sorted(
    RUNS.glob(f"*/{settings.RECORD}"), key=lambda path: path.stat().st_mtime
  )
  if not found:
    raise FileNotFoundError(
      f"no run under {RUNS}/; give --workdir, or make one with `rcmed demo`."
    )
  return found[-1].parent


def with_vocabulary(
  told: settings.Settings, tokenizer: tokens.Tokenizer
) -> settings.Settings:
  """Settings whose model has the tokenizer's vocabulary.

  Raises:
    ValueError: the settings name another one.
  """
  size = told.model.language.vocabulary
  if size not in (0, tokenizer.vocabulary):
    raise ValueError(
      f"model.language.vocabulary={size}, but the tokenizer has "
      f"{tokenizer.vocabulary} ids; set 0 to take the tokenizer's."
    )
  language = dataclasses.replace(
    told.model.language, vocabulary=tokenizer.vocabulary
  )
  model = dataclasses.replace(told.model, language=language)
  return dataclasses.replace(told, model=model)


def with_sizes(
  told: settings.Settings, held: store.Converted
) -> settings.Settings:
  """Settings for a run that starts from converted weights.

  Sizes, order of channels and low-rank updates that the weights have are
  theirs; what adds to a model (new updates, correlation steps), and how it
  computes, stays as told. The tokenizer beside the weights is the run's, where
  the settings name none.
  """
  language = dataclasses.replace(
    held.model.language, attention=told.model.language.attention
  )
  model = dataclasses.replace(
    told.model,
    image=held.model.image,
    language=language,
    decoder=held.model.decoder,
    channel_order=held.model.channel_order,
    lora=held.model.lora if held.model.lora.rank else told.model.lora,
  )
  tokenizer = told.data.tokenizer
  if not tokenizer and (held.folder / TOKENIZER).is_file():
    tokenizer = str(held.folder / TOKENIZER)
  data = dataclasses.replace(told.data, tokenizer=tokenizer)
  return dataclasses.replace(told, model=model, data=data)


def _tokenizer(
  config: pipeline.DataConfig,
  items: Sequence[records.Record],
  workdir: pathlib.Path,
) -> tokens.Tokenizer:
  """The run's own copy of its tokenizer, trained on the index if none is."""
  path = workdir / TOKENIZER
  if path.exists():
    return tokens.Tokenizer(path)
  if not config.tokenizer:
    return tokens.train_tokenizer(
      pipeline.corpus(items), config.vocabulary, path
    )
  tokenizer = tokens.Tokenizer(config.tokenizer)
  shutil.copy(config.tokenizer, path)
  return tokenizer


def _require_same(told: settings.Settings, workdir: pathlib.Path) -> None:
  """Refuses to go on with a run under other settings than it began with."""
  path = workdir / settings.RECORD
  if not path.exists():
    return
  before, now = path.read_text(encoding="utf-8"), settings.to_json(told)
  changes = [
    line
    for line in difflib.ndiff(before.splitlines(), now.splitlines())
    if line[0] in "+-"
  ]
  if changes:
    listed = "\n  ".join(changes)
    raise ValueError(
      f"{workdir} holds a run with other settings (-: its own, +: these):\n  "
      f"{listed}\nGive the same settings to go on, or another --workdir."
    )
