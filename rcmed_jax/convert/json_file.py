"""The JSON files of a checkpoint."""

import json
import pathlib
from typing import Any


def read(path: pathlib.Path) -> dict[str, Any]:
  """What the file says.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it holds no JSON object.
  """
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} is missing; copy it from where the checkpoint came from."
    )
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is not JSON ({error}); copy it again.") from error
  if not isinstance(found, dict):
    raise ValueError(f"{path} holds no JSON object; copy it again.")
  return found


def write(path: pathlib.Path, value: dict[str, Any]) -> None:
  """Writes a value, the same bytes each time."""
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
