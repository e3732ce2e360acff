"""The table of tasks: `tasks.csv`, and files of the same form.

One line for each class. Lists are separated by ";", lines that start with "#"
are left out, and only `class` and `modalities` must be filled in:

  class             the canonical name, "gallbladder"
  sides             pair: the class is two tasks, "left ..." and "right ...";
                    whole+pair: also one without a side; empty: one task
  modalities        words of file names, or in full: ct;mr
  synonyms          other names; of a pair they get its side as well
  abbreviations     "GB"; of a pair, L and R are put before them
  related           narrower, wider or Latin names under which class lists have
                    it: understood, but no words for it in a question
  region, kind      of the body; one of `KINDS`
  cancer            its type, where the target is a cancer of one type
  tolerance_mm      for the normalised surface distance; empty: the default
  tolerance_source  who published it
  window            of computed tomography; empty: as `windows.choose` has it
  instances         yes: counted one by one
  sources           data sets whose class lists hold the class
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import dataclasses
import difflib
import functools

from rcmed_jax.data import readers
from rcmed_jax.data.checks import DataError
from rcmed_jax.eval import wordforms
from rcmed_jax.eval.tasks import DEFAULT, TaskInfo
from rcmed_jax.ingest.volumes import windows

# Millimetres that a contour may be off where nobody published a tolerance of
# the task: that of "Segment Anything in Medical Images on Laptop" (CVPR 2024)
# for all its targets.
DEFAULT_TOLERANCE_MM = 2.0
# Where images carry a spacing against which millimetres mean something. A
# whole optic disc is 2 mm, a nucleus 0.01.
IN_MM = ("ct", "mr", "pet", "ultrasound", "x")

KINDS = (
  "organ",
  "part",  # of an organ
  "tissue",
  "vessel",
  "bone",
  "muscle",
  "lesion",  # a finding that is no tumour, or not told
  "tumor",
  "cell",
  "instrument",
)
SIDES = ("", "pair", "whole+pair")
COLUMNS = (
  *("class", "sides", "modalities", "synonyms", "abbreviations", "related"),
  *("region", "kind", "cancer", "tolerance_mm", "tolerance_source"),
  *("window", "instances", "sources"),
)
NEEDED = ("class", "modalities")

# A modality that is not known and this much like one that is, is a slip.
ALIKE = 0.8

MODALITY_NAMES = tuple(sorted(set(readers.MODALITIES.values())))
# What else a modality is called, beside `readers.MODALITIES`.
_MODALITIES = {
  "x-ray": "x",
  "radiography": "x",
  "mri": "mr",
  "histology": "pathology",
  "histopathology": "pathology",
  "colonoscopy": "endoscopy",
  "optical coherence tomography": "oct",
  "positron emission tomography": "pet",
}


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a file."""

  path: object
  number: int
  fields: Mapping[str, str]

  def fault(self, field: str, message: str, remedy: str) -> DataError:
    """Returns an error that says where."""
    return DataError(f"{self.path}, line {self.number}", field, message, remedy)

  def listed(self, field: str) -> tuple[str, ...]:
    """Returns the parts of a field."""
    parts = (part.strip() for part in self.fields[field].split(";"))
    return tuple(part for part in parts if part)


def tasks(text: str, path: object) -> Iterator[tuple[Line, TaskInfo]]:
  """Yields the tasks of a file, each with the line that it comes from.

  Args:
    text: what the file holds.
    path: what errors call it.

  Raises:
    DataError: it is not of this form; it tells line, field and remedy.
  """
  for line in _lines(text, path):
    yield from ((line, info) for info in _line_tasks(line))


@functools.cache
def modality_name(word: str) -> str:
  """Returns a modality as answers write it, "ct" -> "computed tomography".

  One that is not known comes back as it is.
  """
  text = wordforms.plain(word)
  low = text.lower()
  low = _MODALITIES.get(low, low)
  full = {name.lower(): name for name in readers.MODALITIES.values()}
  return readers.MODALITIES.get(low) or full.get(low, text)


def unknown(modality: str, name: str) -> TaskInfo:
  """Returns a task that no file has, with the defaults."""
  modality, name = modality_name(modality), wordforms.plain(name)
  return TaskInfo(
    modality=modality,
    name=name,
    known=False,
    side=wordforms.side(name),
    window=_window(modality, name),
    **_tolerance(modality),
  )


def _lines(text: str, path: object) -> Iterator[Line]:
  """Yields the lines that hold a class."""
  head: list[str] | None = None
  for number, raw in enumerate(text.splitlines(), 1):
    if not raw.strip() or raw.startswith("#"):
      continue
    fields = [field.strip() for field in next(csv.reader([raw]))]
    if head is None:
      head = _checked_head(fields, path, number)
      continue
    line = Line(path, number, dict.fromkeys(COLUMNS, ""))
    if len(fields) != len(head):
      raise line.fault(
        "fields",
        f"expected {len(head)}, as in the first line, received {len(fields)}",
        "Put a comma for each field that is empty, and quotes around text "
        "with commas",
      )
    line = dataclasses.replace(
      line, fields={**line.fields, **dict(zip(head, fields, strict=True))}
    )
    for field in NEEDED:
      if not line.fields[field]:
        raise line.fault(field, "is empty", "Fill it in")
    yield line
  if head is None:
    raise DataError(
      path, "columns", "holds no line", f"Begin with: {','.join(COLUMNS)}"
    )


def _checked_head(fields: list[str], path: object, number: int) -> list[str]:
  line = Line(path, number, {})
  for field in fields:
    if field not in COLUMNS:
      (near,) = difflib.get_close_matches(field, COLUMNS, n=1, cutoff=0)
      raise line.fault(
        "columns",
        f"{field!r} is none of {', '.join(COLUMNS)}",
        f"The nearest is {near!r}",
      )
  if len(set(fields)) < len(fields):
    raise line.fault("columns", "one comes twice", "Name each once")
  for field in NEEDED:
    if field not in fields:
      raise line.fault("columns", f"{field!r} is missing", "Add it")
  return fields


def _line_tasks(line: Line) -> Iterator[TaskInfo]:
  """Yields the tasks of one line: of each side and modality."""
  fields = line.fields
  for field, allowed in (
    ("sides", SIDES),
    ("kind", ("", *KINDS)),
    ("instances", ("", "yes")),
    ("window", ("", *windows.CT)),
  ):
    if fields[field] not in allowed:
      choices = ", ".join(text for text in allowed if text)
      raise line.fault(
        field,
        f"expected one of {choices}, or nothing; received {fields[field]!r}",
        "Write one of these words",
      )
  if fields["sides"] and wordforms.side(fields["class"]):
    raise line.fault(
      "sides",
      f"the class {fields['class']!r} has a side already",
      "Leave the side out of the class, or leave the field empty",
    )
  tolerance = _told_tolerance(line)
  for modality in _modalities(line):
    for side in _sides(fields["sides"]):
      name = f"{side} {fields['class']}".strip()
      yield TaskInfo(
        modality=modality,
        name=name,
        synonyms=_with_side(line, "synonyms", side),
        abbreviations=_abbreviations(line, side),
        related=_with_side(line, "related", side),
        region=fields["region"],
        kind=fields["kind"],
        cancer=fields["cancer"],
        side=wordforms.side(name),
        window=_window(modality, name, fields["window"]),
        instances=bool(fields["instances"]),
        sources=line.listed("sources"),
        **_tolerance(modality, tolerance, fields["tolerance_source"]),
      )


def _sides(sides: str) -> tuple[str, ...]:
  if not sides:
    return ("",)
  return (*(("",) if sides.startswith("whole") else ()), *wordforms.SIDES)


def _with_side(line: Line, field: str, side: str) -> tuple[str, ...]:
  return tuple(f"{side} {word}".strip() for word in line.listed(field))


def _abbreviations(line: Line, side: str) -> tuple[str, ...]:
  """The side's letter and the abbreviation: LK. A lone K would say little."""
  listed = line.listed("abbreviations")
  if side:
    return tuple(f"{side[0].upper()}{short}" for short in listed)
  return () if line.fields["sides"] else listed


def _modalities(line: Line) -> Sequence[str]:
  full = {*readers.MODALITIES.values()}
  names = []
  for word in line.listed("modalities"):
    name = modality_name(word)
    known = [*readers.MODALITIES, *_MODALITIES, *sorted(full)]
    near = name not in full and difflib.get_close_matches(
      word.lower(), known, n=1, cutoff=ALIKE
    )
    if near:
      raise line.fault(
        "modalities",
        f"{word!r} is not known, but {near[0]!r} is",
        "Correct it; a new modality needs a name that is less alike",
      )
    names.append(name)
  return names


def _told_tolerance(line: Line) -> float | None:
  text = line.fields["tolerance_mm"]
  if not text:
    return None
  try:
    value = float(text)
  except ValueError:
    value = 0.0
  if not 0 < value < float("inf"):
    raise line.fault(
      "tolerance_mm",
      f"expected millimetres above 0, received {text!r}",
      "Write a number like 2.5, or nothing for the default",
    )
  return value


def _tolerance(
  modality: str, told: float | None = None, source: str = ""
) -> dict:
  """The two fields of a tolerance: as told, the default, or none."""
  if told is not None:
    return {"tolerance_mm": told, "tolerance_source": source or "not told"}
  if modality in {readers.MODALITIES[word] for word in IN_MM}:
    return {
      "tolerance_mm": DEFAULT_TOLERANCE_MM,
      "tolerance_source": DEFAULT,
    }
  return {"tolerance_mm": None, "tolerance_source": ""}


def _window(modality: str, name: str, told: str = "") -> str:
  if modality != readers.MODALITIES["ct"]:
    return ""
  return told or windows.choose((name,))
