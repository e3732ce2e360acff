"""Many jobs of `rcmed predict`, and the manifest of what became of them.

  OUT/manifest.json      counts, and image, prompt, folder, state of each job;
                         "earlier", those of runs before that this has not
  OUT/NAME/              the answer of a job, see `predict_one`

A job is waiting, done, failed or skipped; their counts add up to all. NAME is
the place of the file below the folder, or what the jobs file says; of DICOM it
is a number, since exports are named after patients. The manifest alone tells
which file that was, and keeps the number when the run is taken up again: it is
as confidential as the names of the files. A number is given once: where the
manifest was lost, not to a folder that is there.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import csv
import dataclasses
import functools
import io
import json
import os
import pathlib
import re
import time
from typing import Any

import tqdm

from rcmed_jax.apps import predict_one
from rcmed_jax.ingest.dicom import dicom_file
from rcmed_jax.serve import scans, volumes
from rcmed_jax.serve.assistant import Answer, Assistant

MANIFEST = "manifest.json"
STATES = ("waiting", "done", "failed", "skipped")
COLUMNS = ("image", "prompt", "name", "axis", "window", "modality")

# Seconds between manifests: of 10,000 jobs one has some 2 MB.
_EVERY_S = 5.0

# A job's folder: nothing that leads out of OUT, or that a shell lists late.
_NAME = re.compile(r"(?!\.)[\w.+-]+(?: [\w.+-]+)*")
_UNNAMED = re.compile(r"[^\w.+-]+")
_NUMBERED = re.compile(r"dicom-(\d+)")


@dataclasses.dataclass(frozen=True)
class Job:
  """An image, what is asked about it, and where the answer goes."""

  image: pathlib.Path
  asked: predict_one.Asked
  name: str  # of its folder, below OUT
  fault: str = ""  # what is wrong with it, before it began


@dataclasses.dataclass
class State:
  """What became of all jobs. It is what the manifest holds."""

  entries: list[dict[str, Any]]
  earlier: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  written: float = 0.0

  def counts(self) -> dict[str, int]:
    """How many jobs there are, and how many of each state."""
    found = [entry["state"] for entry in self.entries]
    return {"jobs": len(found)} | {name: found.count(name) for name in STATES}

  def write(self, out: pathlib.Path) -> None:
    """Writes the manifest."""
    values = {
      "counts": self.counts(),
      "jobs": self.entries,
      "earlier": self.earlier,
    }
    predict_one.write_json(out / MANIFEST, values)
    self.written = time.monotonic()


def is_one(image: pathlib.Path | None, pattern: str) -> bool:
  """Whether an image is asked about alone, and not a folder of them."""
  if image is None or pattern:
    return False
  return not image.is_dir() or _is_series(image)


def find(
  image: pathlib.Path | None,
  pattern: str,
  listed: pathlib.Path | None,
  asked: predict_one.Asked,
  *,
  out: pathlib.Path,
) -> list[Job]:
  """All jobs of a folder or of a jobs file, in the order of names or lines.

  Args:
    image: the folder.
    pattern: of files and folders below it; "": all in it.
    listed: the jobs file; None: the folder's.
    asked: what a job does not say of itself.
    out: where a manifest of an earlier run may lie.

  Raises:
    ValueError: there is no job, or the jobs file is none.
  """
  numbers = _Numbers(out)
  if listed is not None:
    jobs = _listed(listed, asked, numbers)
  elif image is not None and image.is_dir():
    jobs = [
      Job(path, asked, numbers.name(path, path.relative_to(image).as_posix()))
      for path in _found(image, pattern or "*", out)
    ]
  else:
    raise ValueError(f"{image}: --pattern is of a folder; there is none.")
  if not jobs:
    raise ValueError(
      f"{listed or image} holds no job; correct the path or the --pattern."
    )
  counts = collections.Counter(job.name for job in jobs)
  twice = sorted(name for name, count in counts.items() if count > 1)
  if twice:
    raise ValueError(
      f"{listed}: {len(twice)} names are those of several jobs, such as "
      f"{twice[0]!r}; give each job another name."
    )
  return jobs


def run(
  jobs: Sequence[Job],
  load: Callable[[], Assistant],
  out: pathlib.Path,
  *,
  skip: bool,
) -> State:
  """What became of the jobs. One that fails does not stop the others.

  Args:
    load: makes the assistant, when the first job needs it.
    skip: whether jobs whose answer is there are left out.
  """
  out.mkdir(parents=True, exist_ok=True)
  names = {job.name for job in jobs}
  state = State(
    [
      {
        # Wherever the next run is started from, it is the same file.
        "image": os.path.abspath(job.image),
        "prompt": job.asked.prompt,
        "out": job.name,
        "state": "waiting",
      }
      for job in jobs
    ],
    [entry for entry in _before(out) if entry["out"] not in names],
  )
  state.write(out)
  try:
    with tqdm.tqdm(
      desc="predict", total=len(jobs), unit="job", mininterval=2
    ) as bar:
      for count in _Worker(load, out, skip).work(
        zip(jobs, state.entries, strict=True)
      ):
        bar.update(count)
        if time.monotonic() - state.written > _EVERY_S:
          state.write(out)
  finally:
    state.write(out)
  return state


@dataclasses.dataclass(frozen=True)
class _Begun:
  """A job whose image is open."""

  job: Job
  entry: dict[str, Any]
  scan: scans.Scan
  input_sha256: str


class _Worker:
  """Does jobs and says in their entries what became of them.

  Pictures wait until there are as many as are answered together.
  """

  def __init__(
    self, load: Callable[[], Assistant], out: pathlib.Path, skip: bool
  ):
    self._assistant = functools.cache(load)
    self._out = out
    self._skip = skip
    self._waiting: list[_Begun] = []

  def work(self, jobs: Iterable[tuple[Job, dict[str, Any]]]) -> Iterator[int]:
    """How many have come to their end, now and again."""
    for job, entry in jobs:
      out = self._out / job.name
      told = predict_one.identity(job.image)
      if self._skip and predict_one.is_done(out, job.asked, told):
        entry["state"] = "skipped"
        yield 1
        continue
      assistant = self._assistant()
      with _told(entry):
        if job.fault:
          raise ValueError(job.fault)
        scan = predict_one.open_scan(job.image, job.asked)
        begun = _Begun(job, entry, scan, told)
        if scan.kind == "picture":
          self._waiting.append(begun)
        else:
          said = predict_one.ask(assistant, scan, job.asked)
          self._done(begun, said)
      if entry["state"] != "waiting":
        yield 1
      if len(self._waiting) == assistant.rows:
        yield self._answer_pictures()
    if self._waiting:
      yield self._answer_pictures()

  def _answer_pictures(self) -> int:
    """Answers those that wait: together, or where one is refused, alone."""
    assistant, waiting = self._assistant(), self._waiting
    self._waiting = []
    start = time.monotonic()
    said: list[Answer | None] = [None] * len(waiting)
    if len(waiting) > 1:
      questions = [
        predict_one.question(begun.scan, begun.job.asked) for begun in waiting
      ]
      with contextlib.suppress(ValueError):
        said = [*assistant.ask_many(questions)]
    together = (time.monotonic() - start) / len(waiting)
    for begun, one in zip(waiting, said, strict=True):
      with _told(begun.entry):
        self._done(
          begun,
          one or predict_one.ask(assistant, begun.scan, begun.job.asked),
        )
      begun.entry["seconds"] = round(begun.entry["seconds"] + together, 3)
    return len(waiting)

  def _done(self, begun: _Begun, said: Answer | volumes.VolumeAnswer) -> None:
    job = begun.job
    predict_one.write(
      self._out / job.name,
      job.image,
      begun.scan,
      job.asked,
      said,
      begun.input_sha256,
    )
    begun.entry["state"] = "done"


@contextlib.contextmanager
def _told(entry: dict[str, Any]) -> Iterator[None]:
  """Puts down a failure, of this job alone, and how long it took.

  What is caught would have ended the command, had it been the only job.
  """
  start = time.monotonic()
  try:
    yield
  except (ValueError, OSError, ImportError, NotImplementedError) as error:
    entry |= {"state": "failed", "reason": str(error)}
  seconds = entry.get("seconds", 0.0) + time.monotonic() - start
  entry["seconds"] = round(seconds, 3)


class _Numbers:
  """Names of jobs: of DICOM, numbers that an earlier manifest gave."""

  def __init__(self, out: pathlib.Path):
    self._known = {
      os.path.abspath(entry["image"]): entry["out"]
      for entry in _before(out)
      if _NUMBERED.fullmatch(entry["out"])
    }
    there = [path.name for path in out.iterdir()] if out.is_dir() else []
    taken = [
      int(found[1])
      for name in (*self._known.values(), *there)
      if (found := _NUMBERED.fullmatch(name))
    ]
    self._last = max(taken, default=0)

  def name(self, path: pathlib.Path, otherwise: str) -> str:
    """The name of a job, `otherwise` unless it is of DICOM."""
    if not (_is_series(path) or (path.is_file() and dicom_file.is_dicom(path))):
      return otherwise
    place = os.path.abspath(path)
    if place not in self._known:
      self._last += 1
      self._known[place] = f"dicom-{self._last:04d}"
    return self._known[place]


def _before(out: pathlib.Path) -> list[dict[str, Any]]:
  """Entries of an earlier manifest; none where it cannot be read."""
  try:
    held = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    return [
      entry
      for entry in (*held["jobs"], *held.get("earlier", ()))
      if isinstance(entry["image"], str) and isinstance(entry["out"], str)
    ]
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return []


def _found(
  root: pathlib.Path, pattern: str, out: pathlib.Path
) -> list[pathlib.Path]:
  """What matches. Files of a folder that is a series are part of that."""
  found: list[pathlib.Path] = []
  series: set[pathlib.Path] = set()
  for path in sorted(root.glob(pattern)):
    if path.parent not in series and _wanted(path, root, out):
      found.append(path)
      if path.is_dir():
        series.add(path)
  return found


def _wanted(path: pathlib.Path, root: pathlib.Path, out: pathlib.Path) -> bool:
  """Files, and folders of DICOM; nothing hidden, and no answer of ours."""
  inside = path.relative_to(root).parts
  if not inside or any(part.startswith(".") for part in inside):
    return False
  if path.resolve().is_relative_to(out.resolve()):
    return False
  return path.is_file() or _is_series(path)


def _is_series(folder: pathlib.Path) -> bool:
  """Whether DICOM files lie in the folder itself, and not only below it."""
  return folder.is_dir() and any(
    path.is_file() and dicom_file.is_dicom(path) for path in folder.iterdir()
  )


def _listed(
  path: pathlib.Path, asked: predict_one.Asked, numbers: _Numbers
) -> list[Job]:
  jobs = []
  for number, row in enumerate(_rows(path), 1):
    where = f"{path}: job {number}"
    wrong = sorted(set(row) - set(COLUMNS))
    if wrong:
      raise ValueError(
        f"{where}: {', '.join(map(repr, wrong))} is none of "
        f"{', '.join(COLUMNS)}."
      )
    if not row.get("image"):
      raise ValueError(f"{where}: it has no image; give its path.")
    image = path.parent / row["image"]
    inside = _UNNAMED.sub("_", row["image"]).strip("_.") or "image"
    name = row.get("name") or numbers.name(image, inside)
    if not _NAME.fullmatch(name):
      raise ValueError(
        f"{where}: {name!r} names no folder; use letters, digits, - and _."
      )
    jobs.append(_job(image, name, row, asked))
  return jobs


def _job(
  image: pathlib.Path,
  name: str,
  row: dict[str, str],
  asked: predict_one.Asked,
) -> Job:
  own = {
    key: row[key] for key in ("axis", "window", "modality") if row.get(key)
  }
  fault = ""
  try:
    looking = dataclasses.replace(asked.looking, **own)
  except ValueError as error:
    looking, fault = asked.looking, str(error)
  prompt = row.get("prompt") or asked.prompt
  if not prompt:
    fault = "it has no prompt; give its own, or --prompt for all"
  asked = dataclasses.replace(asked, prompt=prompt, looking=looking)
  return Job(image, asked, name, fault)


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
  """The lines of a jobs file as text.

  Raises:
    ValueError: it is neither a JSON list of objects nor CSV.
  """
  text = path.read_text(encoding="utf-8-sig")
  try:
    if path.suffix.lower() == ".csv":
      rows = list(csv.DictReader(io.StringIO(text), strict=True))
    else:
      rows = json.loads(text)
  except (ValueError, csv.Error) as error:
    raise ValueError(f"{path} is no list of jobs: {error}.") from error
  sound = isinstance(rows, list) and all(
    isinstance(row, dict)
    and all(isinstance(word, str) for pair in row.items() for word in pair)
    for row in rows
  )
  if not sound:
    raise ValueError(
      f"{path} is no list of jobs; expected [{{image, prompt}}, ...] in JSON, "
      "or CSV whose lines have as many cells as its first."
    )
  return rows
