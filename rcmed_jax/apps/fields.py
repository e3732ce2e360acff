"""Nested values -> frozen dataclasses, each key and type checked by name.

A setting is named by its dotted path, `config.train.steps`. The dataclasses
are the one list of settings: whatever they do not hold is refused, and the
answer names the nearest setting and its type.
"""

import ast
from collections.abc import Iterable, Mapping
import dataclasses
import difflib
import types
import typing
from typing import Any


def build(cls: type, values: Mapping[str, Any], root: str = "config") -> Any:
  """The `cls` that holds `values`; what they leave out keeps its default.

  An int is accepted for a float and a list for a tuple (JSON has no tuples).

  Args:
    cls: a dataclass whose fields are bool, int, float, str, Literal, tuple,
      `X | None`, or again such a dataclass.
    values: nested by section, the innermost values of the fields' types.
    root: first part of every dotted path.

  Raises:
    ValueError: an unknown key (names the nearest one), a value of the wrong
      type, a missing value, or whatever the dataclass itself refuses.
  """
  return _build(cls, values, root, _settings(cls, root))


def override(
  cls: type, values: dict[str, Any], path: str, text: str, root: str = "config"
) -> None:
  """Sets the field at the dotted `path` in nested `values` from its text.

  The text is read as the field's type asks: `10`, `1e-4`, `true`, `None`,
  `(1, 2)`; a str is taken as it stands.

  Raises:
    ValueError: no such setting, or text that is not of its type.
  """
  settings = _settings(cls, root)
  if path not in settings:
    raise ValueError(_unknown(path, settings))
  kind, _ = settings[path]
  if _is_section(kind):
    keys = ", ".join(_hints(kind))
    raise ValueError(f"{path} is a section, not a value; its keys: {keys}.")
  *sections, name = path.split(".")[1:]
  for section in sections:
    values = values.setdefault(section, {})
  values[name] = _check(kind, path, settings, _literal(text), text)


def _build(cls: type, values: Any, path: str, settings: dict) -> Any:
  if not isinstance(values, Mapping):
    raise ValueError(
      f"{path} is a section with the keys {', '.join(_hints(cls))}; "
      f"received {values!r}."
    )
  hints = _hints(cls)
  for name in values:
    if name not in hints:
      raise ValueError(_unknown(f"{path}.{name}", settings))
  for field in dataclasses.fields(cls):
    if field.name not in values and not _has_default(field):
      raise ValueError(
        f"{path}.{field.name} is missing; expected "
        f"{_describe(hints[field.name])}."
      )
  checked = {}
  for name, value in values.items():
    here, kind = f"{path}.{name}", hints[name]
    if _is_section(kind):
      checked[name] = _build(kind, value, here, settings)
    else:
      checked[name] = _check(kind, here, settings, value)
  return cls(**checked)


def _check(kind: Any, path: str, settings: dict, *readings: Any) -> Any:
  """The first of the readings of one value that is a `kind`."""
  for value in readings:
    try:
      return _accept(kind, value)
    except _MismatchError:
      continue
  _, default = settings[path]
  example = "" if default is dataclasses.MISSING else f", such as {default!r}"
  raise ValueError(
    f"{path} must be {_describe(kind)}{example}; received {readings[-1]!r}."
  )


class _MismatchError(Exception):
  """The value is not of the type; the caller knows its name."""


def _accept(kind: Any, value: Any) -> Any:
  """`value` as a `kind`, or _MismatchError."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin in (types.UnionType, typing.Union):
    return _first(arguments, value)
  if origin is typing.Literal and value in arguments:
    return value
  if origin is tuple and isinstance(value, tuple | list):
    if arguments[-1] is Ellipsis:
      arguments = arguments[:1] * len(value)
    if len(arguments) == len(value):
      return tuple(map(_accept, arguments, value))
  # bool is a subclass of int, yet True is no number of steps.
  if kind is float and type(value) is int:
    return float(value)
  if type(value) is kind:
    return value
  raise _MismatchError


def _first(kinds: Iterable[Any], value: Any) -> Any:
  for kind in kinds:
    try:
      return _accept(kind, value)
    except _MismatchError:
      continue
  raise _MismatchError


def _literal(text: str) -> Any:
  if text.lower() in ("true", "false"):
    return text.lower() == "true"
  try:
    return ast.literal_eval(text.strip())
  except (ValueError, SyntaxError):
    return text


def _settings(cls: type, path: str) -> dict[str, tuple[Any, Any]]:
  """Dotted path -> (type, default) of every section and field."""
  found = {path: (cls, dataclasses.MISSING)}
  hints = _hints(cls)
  for field in dataclasses.fields(cls):
    here, kind = f"{path}.{field.name}", hints[field.name]
    if _is_section(kind):
      found |= _settings(kind, here)
    else:
      found[here] = (kind, field.default)
  return found


def _is_section(kind: Any) -> bool:
  return dataclasses.is_dataclass(kind)


def _hints(cls: Any) -> dict[str, Any]:
  hints = typing.get_type_hints(cls)
  return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _has_default(field: dataclasses.Field) -> bool:
  missing = dataclasses.MISSING
  return field.default is not missing or field.default_factory is not missing


def _unknown(path: str, settings: dict) -> str:
  def likeness(known: str) -> float:
    # The last word counts on its own too, so that `config.steps` finds
    # `config.train.steps`; the whole path counts twice, to stay in its section.
    whole = difflib.SequenceMatcher(None, path, known).ratio()
    words = path.split(".")[-1], known.split(".")[-1]
    return 2 * whole + difflib.SequenceMatcher(None, *words).ratio()

  nearest = max(settings, key=likeness)
  return (
    f"{path} is not a setting; the nearest is {nearest} "
    f"({_describe(settings[nearest][0])})."
  )


def _describe(kind: Any) -> str:
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if _is_section(kind):
    return f"section with the keys {', '.join(_hints(kind))}"
  if origin in (types.UnionType, typing.Union):
    return " or ".join(map(_describe, arguments))
  if origin is typing.Literal:
    return " or ".join(map(repr, arguments))
  if kind is types.NoneType:
    return "None"
  return str(kind) if origin else kind.__name__
