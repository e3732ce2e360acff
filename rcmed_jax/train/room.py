"""Room on the disk for a checkpoint."""

import errno
import os
import shutil

from etils import epath

from rcmed_jax.data import files

# A full disk, a quota that is used up, a limit on a file's size.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require(folder: epath.Path, needed: int) -> None:
  """Nothing, where so many bytes are free, or it lies in a bucket.

  Raises:
    OSError: tells the way out.
  """
  if files.is_remote(folder):
    return  # buckets do not fill
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise OSError(_no_space(folder, needed, free))


def explained(
  folder: epath.Path, error: Exception, needed: int | None = None
) -> Exception:
  """A full disk in words; any other error as it is."""
  words = [os.strerror(code) for code in _FULL]
  said = next((one for one in words if one in str(error)), None)
  if said is None or files.is_remote(folder):
    return error
  free = shutil.disk_usage(folder).free
  return OSError(f"{said}. {_no_space(folder, needed, free)}")


def _no_space(folder: epath.Path, needed: int | None, free: int) -> str:
  wanted = "more" if needed is None else f"{needed:,} bytes"
  return (
    f"{folder}: no space for a checkpoint: it needs {wanted}, {free:,} bytes "
    "are free. Free disk space, lower train.keep, or choose a workdir on "
    "another disk; the checkpoints before this one are whole."
  )
