"""Packages that come with an extra, imported where they are first needed."""

import importlib
from types import ModuleType


def load(name: str, what: str, extra: str) -> ModuleType:
  """The module of that name.

  Args:
    name: "pycocotools.mask".
    what: needs it, as a sentence begins: "Polygons of COCO".
    extra: of this project, which installs it.

  Raises:
    ImportError: it is not installed; says what to install.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ImportError(
      f"{what}: this needs {name.partition('.')[0]}; "
      f'pip install "rcmed-jax[{extra}]".'
    ) from error
