"""What keeps a patient's identity inside a DICOM file.

Names, numbers, dates, UIDs and free text of a file never become part of an id,
a group, a description or a fault, unless `Options.keep_identifiers`. Three
things see to it: ids are pseudonyms; what pydicom says of a file, which may
quote it, is caught and said in other words; and a file below the folder that
was opened is named by its place in a sorted list, since exports are named after
patients. This finds file 17 of DIR, which faults call DIR#17:

  find DIR -type f | LC_ALL=C sort | sed -n 17p

Only the names of segments and regions are taken over as text: they are classes.
One that holds an identifier of its own file is refused. The folder that was
opened is named as it was given, also as the data set where none is named.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import secrets
from typing import Any, TypeVar

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import guards
from rcmed_jax.ingest.sources import Options

Result = TypeVar("Result")

_NO_LOGS = guards.Shared(lambda: guards.without_logs("pydicom", "highdicom"))

# 64 bits: among a million patients, two share one by a chance of 3 in 10^8.
_DIGEST_BYTES = 8
_MOST_KEY = 64  # bytes that blake2b takes as a key

# Elements beside persons' names whose whole value would give somebody away.
_IDENTIFYING = (
  "PatientID",
  "OtherPatientIDs",
  "PatientBirthDate",
  "AccessionNumber",
  "StudyID",
  "InstitutionName",
  "StationName",
  "DeviceSerialNumber",
)
_SHORTEST = 3  # characters of a name's part that are looked for


def with_key(options: Options) -> Options:
  """The options with a key for pseudonyms: theirs, or a new random one.

  An unkeyed hash of a patient's number can be undone by trying all numbers. A
  random key makes pseudonyms that agree within one source and nowhere else:
  give a key to have the same ones in the next run, or in another source.
  """
  if options.key or options.keep_identifiers:
    return options
  return dataclasses.replace(options, key=secrets.token_bytes(32))


def pseudonym(options: Options, kind: str, value: str) -> str:
  """A name for a value, "patient-5f0c...", that tells only equal ones apart.

  Args:
    options: of `with_key`; with `keep_identifiers` the value itself comes back.
    kind: what is named; equal values of other kinds get other names.
    value: the identifier.
  """
  if options.keep_identifiers:
    return value
  if not options.key:
    raise ValueError("Pseudonyms need a key; make the options by with_key.")
  key = options.key
  if len(key) > _MOST_KEY:
    key = hashlib.blake2b(key).digest()
  digest = hashlib.blake2b(
    f"{kind}\0{value}".encode("utf-8", "surrogatepass"),
    key=key,
    digest_size=_DIGEST_BYTES,
  )
  return f"{kind}-{digest.hexdigest()}"


def files(root: pathlib.Path) -> list[pathlib.Path]:
  """All files below a folder, in the order that `place` counts by."""
  if root.is_file():
    return [root]
  found = [
    pathlib.Path(folder) / name
    for folder, _, names in os.walk(root)
    for name in names
  ]
  return sorted(found, key=os.fsencode)


def place(
  options: Options, root: pathlib.Path, path: pathlib.Path, number: int
) -> str:
  """How faults name a file: see the top of this file.

  Args:
    number: its place in `files(root)`, from 1.
  """
  if options.keep_identifiers or path == root:
    return str(path)
  return f"{root}#{number}"


def attempt(
  where: str, field: str, what: str, remedy: str, work: Callable[[], Result]
) -> Result:
  """What the work returns; it is not heard of what it says meanwhile.

  Args:
    where: the file as faults name it.
    field: of the fault.
    what: failed, for the fault: "its header cannot be read".
    remedy: of the fault.
    work: reads a file through pydicom. Damaged files make it raise anything,
      of which only the class is told.

  Raises:
    DataError: the work's own, or made of another error of its.
  """
  with quiet():
    try:
      return work()
    except DataError:
      raise
    except Exception as error:
      failed = type(error).__name__
  # Raised out here, it carries no trace of the error and its text.
  raise DataError(where, field, f"{what} ({failed})", remedy)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """While it lasts, pydicom neither warns nor logs: it quotes what it reads.

  Threads may overlap: it lasts until the last of them has left.
  """
  with guards.NO_WARNINGS, _NO_LOGS:
    yield


def identifiers(dataset: Any) -> frozenset[str]:
  """Lower-case texts that would give away whom a pydicom dataset is of.

  Parts of all persons' names, and the values of elements that identify.
  """
  found = set()
  for element in dataset:
    if element.VR == "PN":
      values = element.value if element.VM > 1 else [element.value]
      for part in re.split(r"[\W_]+", " ".join(map(str, values or ()))):
        found.add(part.lower())
  for name in _IDENTIFYING:
    found.add(str(dataset.get(name, "") or "").strip().lower())
  return frozenset(text for text in found if len(text) >= _SHORTEST)


def gives_away(name: str, identifiers: frozenset[str]) -> bool:
  """Whether a class's name holds one of them as a word or words."""
  text = f" {' '.join(re.split(r'[^0-9a-z]+', name.lower()))} "
  return any(
    f" {' '.join(re.split(r'[^0-9a-z]+', one))} " in text for one in identifiers
  )
