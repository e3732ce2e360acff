"""A file system with little room."""

from collections.abc import Iterator
import contextlib
import pathlib
import subprocess

import pytest


@contextlib.contextmanager
def mounted(folder: pathlib.Path, size: str) -> Iterator[pathlib.Path]:
  """Makes the folder one of this size, "300k", or skips the test."""
  folder.mkdir()
  result = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
    capture_output=True,
    text=True,
  )
  if result.returncode:
    pytest.skip(f"cannot mount a small file system: {result.stderr.strip()}")
  yield folder
  subprocess.run(["umount", "-l", folder], check=True)
