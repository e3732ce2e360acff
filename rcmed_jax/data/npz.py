"""NumPy's .npz files, whose damage NumPy and zipfile tell in many ways."""

import os
import struct
import tokenize
import zipfile
import zlib

import numpy as np

# What they raise of files that are none, and of damaged ones.
DAMAGED = (
  zipfile.BadZipFile,
  zlib.error,
  OSError,
  EOFError,
  ValueError,
  TypeError,
  KeyError,
  NotImplementedError,
  OverflowError,
  MemoryError,
  IndexError,
  struct.error,
  # numpy reads an array's header as Python.
  SyntaxError,
  tokenize.TokenError,
  RuntimeError,  # zipfile's, of encrypted members
)


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """All arrays of a file by name.

  Objects are refused: to unpickle them is to run what they say.

  Raises:
    ValueError: it is no .npz file, or damaged; says why, not which.
  """
  try:
    if not zipfile.is_zipfile(path):  # NumPy takes other files as well
      raise ValueError("no zip file")
    with np.load(path, allow_pickle=False) as file:
      return dict(file)
  except DAMAGED as error:
    raise ValueError(str(error) or type(error).__name__) from error
