"""JSON files of any size, value by value.

What an index of three million images holds does not fit into memory next to
everything else, and a file that breaks off in the middle still says something
before that.
"""

from collections.abc import Callable, Iterator
import pathlib
import re
from typing import Any

import ijson

from rcmed_jax.data.checks import DataError

# Deeper values are an accident or an attack: nothing here is deeper than five.
MAX_DEPTH = 64

# Enough of a file to see what it is.
START_BYTES = 4096
FIRST_KEY = re.compile(r'\s*\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*(\S)')

Twice = Callable[[str], None]


def first_key(path: pathlib.Path) -> tuple[str, str]:
  """The first key of a file that holds an object, and its value's first sign.

  Two empty strings where the file holds nothing of the kind.
  """
  with path.open("rb") as file:
    start = file.read(START_BYTES).decode("utf-8", "replace")
  found = FIRST_KEY.match(start)
  return (found[1], found[2]) if found else ("", "")


def entries(
  path: pathlib.Path, field: str, form: str, twice: Twice | None = None
) -> Iterator[tuple[str, Any]]:
  """(key, value) of a file that holds one object, in its order.

  Args:
    path: the file.
    field: what it is, for errors: "index".
    form: what was expected, for errors: "{image path: ...}".
    twice: takes each key that an object within a value has twice, of which the
      last value is kept; None: nobody is told. Keys of the file's own object
      come as often as they are there.

  Raises:
    DataError: the file is missing or is no such JSON; this may be found only
      after entries were given.
  """
  if not path.is_file():
    raise DataError(
      path,
      field,
      "there is no such file",
      f"Give a JSON file of the form {form}; `rcmed data phantom` makes one",
    )
  with path.open("rb") as file:
    yield from _entries(_Events(file, path, field, form), twice)


def elements(
  path: pathlib.Path, field: str, form: str, key: str
) -> Iterator[Any]:
  """The elements of the array under a key of the file's own object.

  Raises:
    DataError: as `entries`, or the value there is no array.
  """
  with path.open("rb") as file:
    events = _Events(file, path, field, form)
    events.expect_object()
    for event, name in events:
      if event == "end_map":
        return
      events.place = f"within {name!r}"
      event, value = next(events)
      if name != key:
        _value(event, value, events, None)
      elif event != "start_array":
        raise events.error(f"{key!r} holds no array")
      else:
        yield from _rest_of_array(events)


class _Events:
  """ijson's events, with errors that name the file and the place."""

  def __init__(self, file: Any, path: pathlib.Path, field: str, form: str):
    self._events = iter(ijson.basic_parse(file, use_float=True))
    self._path, self._field, self._form = path, field, form
    self.place = "at its start"

  def __iter__(self) -> "_Events":
    return self

  def __next__(self) -> tuple[str, Any]:
    try:
      return next(self._events)
    except (ijson.JSONError, ValueError) as error:
      # The library's message goes on with the text and an arrow at the place.
      what = error.args[0] if error.args else ""
      if isinstance(what, bytes):
        what = what.decode("utf-8", "replace")
      raise self.error(
        f"this is not JSON {self.place} ({what.partition(chr(10))[0].strip()})"
      ) from error

  def error(self, message: str) -> DataError:
    """What to raise of this file."""
    return DataError(self._path, self._field, message, f"Expected {self._form}")

  def expect_object(self) -> None:
    """Goes to the first entry."""
    event, _ = next(self)
    if event != "start_map":
      found = {"start_array": "a list"}.get(event, f"a {event}")
      raise self.error(f"received {found}")


def _entries(events: _Events, twice: Twice | None) -> Iterator[tuple[str, Any]]:
  events.expect_object()
  count = 0
  for event, key in events:
    if event == "map_key":
      value = _value(*next(events), events, twice)
      count += 1
      events.place = f"after entry {count}, {key!r}"
      yield key, value


def _rest_of_array(events: _Events) -> Iterator[Any]:
  for count, (event, value) in enumerate(events, 1):
    if event == "end_array":
      return
    found = _value(event, value, events, None)
    events.place = f"after element {count}"
    yield found


def _value(
  event: str, value: Any, events: _Events, twice: Twice | None, depth: int = 0
) -> Any:
  """The value that starts with the event."""
  if depth > MAX_DEPTH:
    raise events.error(f"more than {MAX_DEPTH} levels deep {events.place}")
  if event == "start_array":
    found: list[Any] = []
    for event, value in events:
      if event == "end_array":
        break
      found.append(_value(event, value, events, twice, depth + 1))
    return found
  if event == "start_map":
    members: dict[str, Any] = {}
    for event, key in events:
      if event == "end_map":
        break
      if twice and key in members:
        twice(key)
      members[key] = _value(*next(events), events, twice, depth + 1)
    return members
  return value
