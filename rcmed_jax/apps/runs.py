"""A run is a folder: everything that one training made and needs.

settings.json     what it was told
run.json          what it was made with, once a start; see manifest.py
tokenizer.model   its SentencePiece model
launch            which launch began it, where whatever started it says so
checkpoints/, frozen/, damaged/, metrics.jsonl, tensorboard/, profile/,
bad_batches.jsonl, hang-P.txt   see train/
quarantine.jsonl  data that could not be used
quarantine-P.jsonl  of process P, until process 0 takes them in

The folder may be gs://BUCKET/RUN. All processes of a run see the same one.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import difflib
import os
import pathlib
import secrets

from etils import epath
import jax
import numpy as np

from rcmed_jax.apps import settings
from rcmed_jax.convert import store
from rcmed_jax.data import (
  augment,
  checks,
  files,
  mixture,
  pipeline,
  readers,
  records,
  shards,
  tokens,
)
from rcmed_jax.eval.protocols import EvalConfig
from rcmed_jax.parallel import hosts
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import validation
from rcmed_jax.train.config import TrainConfig
from rcmed_jax.train.optimizer import OptimizerConfig

TOKENIZER = "tokenizer.model"
LAUNCH = "launch"
QUARANTINE = "quarantine.jsonl"
PART = "quarantine-{}.jsonl"

# Whether to go on with the run in a folder: if there is one, never, always.
# Never still goes on with what the same launch began: a cluster starts the same
# command again.
RESUME = ("auto", "never", "required")

# Environment variable: names a launch. Source: ours; launch/ sets it.
LAUNCHED_AS = "RCMED_LAUNCH"

# Where runs go by default, and where the newest is looked for.
RUNS = pathlib.Path("runs")


@dataclasses.dataclass(frozen=True)
class Run:
  """An opened run: its folder, settings, records and tokenizer."""

  workdir: epath.Path
  settings: settings.Settings
  items: Sequence[records.Sample]
  tokenizer: tokens.Tokenizer
  quarantine: checks.Quarantine
  held_out_items: Sequence[records.Sample] = ()

  def batches(self) -> pipeline.Pipeline:
    """A fresh iterator of this process's training batches."""
    return self._pipeline(self.items, self.settings.data)

  def held_out(self) -> validation.Rows | None:
    """The rows of data.validation, if any: each record once.

    The last batch is filled up with the first of them. Questions are drawn as
    in training; images stay as they are.
    """
    count = len(self.held_out_items)
    if not count:
      return None
    config = dataclasses.replace(
      self.settings.data, augment=augment.AugmentConfig(), temperature=1.0
    )
    batches = -(-count // self.settings.train.batch_size)
    return validation.Rows(self._pipeline(self.held_out_items, config), batches)

  def _pipeline(
    self, items: Sequence[records.Sample], config: pipeline.DataConfig
  ) -> pipeline.Pipeline:
    part, parts = meshes.batch_part(meshes.make_mesh(self.settings.mesh))
    return pipeline.Pipeline(
      items,
      self.tokenizer,
      config,
      image_size=self.settings.model.image.image_size,
      batch_size=self.settings.train.batch_size,
      quarantine=self.quarantine,
      process=part,
      processes=parts,
    )

  def gather_quarantine(self) -> None:
    """Takes what all processes found into the file of process 0."""
    gather(self.quarantine, self.workdir)


def start(
  told: settings.Settings,
  workdir: str | os.PathLike[str],
  *,
  resume: str = "auto",
  allowed: Sequence[str] = (),
) -> Run:
  """Opens a run for training, new or begun, and records its settings.

  Args:
    resume: one of RESUME: whether the folder may, must not or must hold a run.
    allowed: settings, as "train.steps", or sections, that may differ from those
      that the run began with; the new ones are recorded.

  Raises:
    DataError: the index cannot be read.
    ValueError: the folder holds a run with other settings or against
      `resume`, or not all processes see it; or there is no such setting.
  """
  workdir = epath.Path(workdir)
  hosts.first_does(lambda: _require_resumable(workdir, resume))
  name = quarantine_name(jax.process_index())
  quarantine = checks.Quarantine(workdir / name)
  hosts.first_does(lambda: _take_parts(quarantine, workdir))  # of a killed run
  items = _training_items(told, quarantine)
  held_out: Sequence[records.Sample] = ()
  if told.data.validation:
    held_out = read_items(
      told, told.data.validation, quarantine, descriptions=""
    )
  hosts.first_does(lambda: _record(told, items, workdir, allowed))
  path = workdir / TOKENIZER
  if not path.exists():
    raise ValueError(
      f"process {jax.process_index()} does not see {path}, which process 0 "
      "wrote; give a --workdir that all hosts share, on a network disk or in "
      "gs://."
    )
  tokenizer = tokens.Tokenizer(path)
  told = with_vocabulary(told, tokenizer)
  _require_same(told, workdir)
  return Run(workdir, told, items, tokenizer, quarantine, held_out)


def require_shared(folder: str | os.PathLike[str], flag: str) -> None:
  """Makes a folder that all processes write to, where all see the same one.

  Args:
    folder: of a run or a report.
    flag: what gives another.

  Raises:
    ValueError: in all of them, names those that see another.
  """
  if jax.process_count() == 1:
    return
  folder = epath.Path(folder)
  drawn = np.array([secrets.randbits(31)], np.int32)  # each draws its own
  path = folder / f"shared-{hosts.all_of(drawn)[0]}"
  folder.mkdir(parents=True, exist_ok=True)
  hosts.first_does(lambda: path.write_text(""))
  seen = hosts.all_of(np.array([path.exists()]))
  hosts.first_does(lambda: path.unlink(missing_ok=True))
  if not seen.all():
    others = ", ".join(map(str, np.flatnonzero(~seen)))
    raise ValueError(
      f"process {others} of {len(seen)} does not see {folder}, which process 0 "
      f"writes to; give a {flag} that all hosts share, on a network disk."
    )


def quarantine_name(process: int) -> str:
  """The file in which a process puts down what cannot be used."""
  return QUARANTINE if process == 0 else PART.format(process)


def gather(quarantine: checks.Quarantine, folder: epath.Path) -> None:
  """Takes what all processes found into the file of process 0."""
  quarantine.flush()
  hosts.barrier("quarantine")
  hosts.first_does(lambda: _take_parts(quarantine, folder))


def read_items(
  told: settings.Settings,
  index: str | pathlib.Path,
  quarantine: checks.Quarantine,
  *,
  descriptions: str | None = None,
) -> Sequence[records.Sample]:
  """The samples of an index or a built data set, as the settings ask.

  Args:
    index: an index file, or the FOLDER or FOLDER:SPLIT of a built data set,
      whose descriptions are its own.
    descriptions: of an index, instead of those in the settings.
  """
  if not index:
    raise ValueError(
      "config.data.index is empty; give --config.data.index=image2label.json. "
      "`rcmed data phantom` draws a data set to begin with."
    )
  if files.is_remote(index):
    raise ValueError(
      f"{index} lies in a bucket; indices and data sets are read from disks. "
      "Copy it to one, or mount the bucket there."
    )
  if shards.is_built(index):
    return shards.Shards(index)
  folder, colon, split = str(index).rpartition(":")
  if colon and shards.is_built(folder):
    return shards.Shards(folder, split)
  return readers.read_index(
    index,
    told.data.descriptions if descriptions is None else descriptions,
    modality_words=dict(told.data.modality_words),
    quarantine=quarantine,
  )


def converted(workdir: str | os.PathLike[str]) -> pathlib.Path | None:
  """The folder, where it holds a converted checkpoint; these lie on disks."""
  if files.is_remote(workdir) or not store.is_converted(pathlib.Path(workdir)):
    return None
  return pathlib.Path(workdir)


def add_choice_flags(parser: argparse.ArgumentParser) -> None:
  """Adds which of a run's weights are meant: --averaged and --best."""
  parser.add_argument(
    "--averaged",
    action="store_true",
    help="the averaged weights of a run, which optimizer.average=0.999 keeps",
  )
  parser.add_argument(
    "--best",
    action="store_true",
    help="of a run the step that did best on its held-out set, which "
    "train.keep_best=1 keeps, not the last",
  )


def refuse_choice(
  folder: os.PathLike[str], *, averaged: bool, best: bool
) -> None:
  """Raises ValueError where a converted checkpoint is asked for such."""
  if averaged or best:
    raise ValueError(
      f"{folder} is converted, it has neither averaged nor best weights."
    )


def recorded(workdir: str | os.PathLike[str]) -> settings.Settings:
  """A run's settings; of a converted checkpoint, its model and defaults.

  Raises:
    FileNotFoundError: the folder is neither, or lacks its tokenizer.
    ValueError: it holds only parts of the model.
  """
  workdir = epath.Path(workdir)
  folder = converted(workdir)
  if folder is None:
    require(workdir)
    return settings.load(workdir)
  held = store.read_whole(folder)
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
    mesh=meshes.MeshConfig(),
    eval=EvalConfig(),
  )
  return with_vocabulary(told, tokens.Tokenizer(workdir / TOKENIZER))


def require(workdir: str | os.PathLike[str]) -> None:
  """Raises FileNotFoundError where a folder is no run."""
  if not (epath.Path(workdir) / settings.RECORD).is_file():
    raise FileNotFoundError(
      f"{workdir} is not the folder of a run: it lacks {settings.RECORD}; "
      "give --workdir, the folder that rcmed train or rcmed demo wrote."
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


def _training_items(
  told: settings.Settings, quarantine: checks.Quarantine
) -> Sequence[records.Sample]:
  """What the settings train on: one set, or several in proportion."""
  if not told.data.mixture:
    return read_items(told, told.data.index, quarantine)
  if told.data.descriptions:
    raise ValueError(
      "config.data.descriptions is of one index; with config.data.mixture, "
      "build each set with its descriptions."
    )
  names, weights = zip(*told.data.mixture, strict=True)
  parts = [read_items(told, name, quarantine) for name in names]
  return mixture.Mixture(parts, weights)


def _record(
  told: settings.Settings,
  items: Sequence[records.Sample],
  workdir: epath.Path,
  allowed: Sequence[str],
) -> None:
  """Writes what makes the folder a run: tokenizer and settings.

  The tokenizer is the run's own copy, trained on the index if none is given.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  launch = os.environ.get(LAUNCHED_AS)
  if launch and not (workdir / settings.RECORD).exists():
    files.write_whole(workdir / LAUNCH, launch + "\n")
  path = workdir / TOKENIZER
  if path.exists():
    tokenizer = tokens.Tokenizer(path)
  elif told.data.tokenizer:
    tokenizer = tokens.Tokenizer(told.data.tokenizer)
    files.write_whole(path, epath.Path(told.data.tokenizer).read_bytes())
  else:
    tokenizer = tokens.train_tokenizer(
      pipeline.corpus(items), told.data.vocabulary, path
    )
  told = with_vocabulary(told, tokenizer)
  _require_same(told, workdir, allowed)
  settings.save(told, workdir)


def _require_resumable(workdir: epath.Path, resume: str) -> None:
  begun = (workdir / settings.RECORD).exists()
  if begun and resume == "never" and not _is_of_this_launch(workdir):
    raise ValueError(
      f"{workdir} holds a run; give another --workdir, or --resume=auto to go "
      "on with it."
    )
  if not begun and resume == "required":
    raise ValueError(
      f"{workdir} holds no run to go on with; correct --workdir, or give "
      "--resume=auto to begin one."
    )


def _is_of_this_launch(workdir: epath.Path) -> bool:
  launch, path = os.environ.get(LAUNCHED_AS), workdir / LAUNCH
  return bool(launch) and path.exists() and path.read_text().strip() == launch


def _take_parts(quarantine: checks.Quarantine, workdir: epath.Path) -> None:
  """Takes in the files of other processes and deletes them."""
  for path in sorted(workdir.glob(PART.format("*"))):
    quarantine.take(path)
    quarantine.flush()
    path.unlink()


def _require_same(
  told: settings.Settings, workdir: epath.Path, allowed: Sequence[str] = ()
) -> None:
  """Refuses to go on with a run under other settings than it began with."""
  path = workdir / settings.RECORD
  if not path.exists():
    return
  # Written anew: settings that came later have their defaults.
  begun = settings.load(workdir)
  for key in allowed:
    begun = settings.with_those_of(begun, told, key)
  before, now = settings.to_json(begun), settings.to_json(told)
  changes = [
    line
    for line in difflib.ndiff(before.splitlines(), now.splitlines())
    if line[0] in "+-"
  ]
  if changes:
    listed = "\n  ".join(changes)
    raise ValueError(
      f"{workdir} holds a run with other settings (-: its own, +: these):\n  "
      f"{listed}\nGive the same settings to go on, or another --workdir; "
      "--allow=train.steps lets that one differ, and so any other."
    )
