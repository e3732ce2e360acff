"""How the server answers a volume, whichever path asks for it.

A job reads the scan, asks about its slices in turns with other requests, and
renders the answer, with all limits: of size, memory and time. What it reads,
such as a session, is held until its end.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import pathlib
from typing import TypeVar

from rcmed_jax.serve import asking, errors, scans, volume_jobs, volumes
from rcmed_jax.serve.cleanup import Cleanup
from rcmed_jax.serve.limits import Limits

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What is asked of a volume."""

  text: str
  describe: bool
  looking: scans.Looking
  cleanup: Cleanup


async def begin(
  service: asking.Service,
  path: pathlib.Path,
  wanted: Wanted,
  render: Callable[[scans.Scan, volumes.VolumeAnswer], Result],
  *,
  fields: str = "",
  held: contextlib.ExitStack | None = None,
) -> volume_jobs.Job[Result]:
  """A job that has begun; it ends in what `render` makes of the answer.

  Args:
    path: of a file or a series.
    render: writes the answer, in the job's thread.
    fields: what stands before the names of fields in errors, "params.".
    held: closed at the job's end, or now if it does not begin.

  Raises:
    HTTPException: 429, as many wait as may.
  """

  def answer(on_slice: volume_jobs.OnSlice) -> Result:
    with held or contextlib.nullcontext(), service.masks.share() as take:
      with errors.blaming(f"{fields}prompt"):
        looking = dataclasses.replace(wanted.looking, trained=service.windows)
        scan = open_volume(path, wanted.text, looking, service.limits)
        if doubt := scan.doubt():
          raise errors.BadFieldError(
            f"{fields}modality",
            f"{doubt}; send CT, or percentiles as the window if it is none",
          )
        if wanted.cleanup.min_mm3 and scan.voxel_mm3 is None:
          raise errors.BadFieldError(
            f"{fields}min_mm3",
            "the file does not tell the size of a voxel; leave it out",
          )
        depth = scan.view.shape[0]
        said = volumes.answer(
          service.engine,
          scan,
          wanted.text,
          describe=wanted.describe,
          cleanup=wanted.cleanup,
          on_slice=lambda: on_slice(depth),
          take=take,
        )
      return render(scan, said)

  try:
    return await service.volumes.begin(answer, service.limits.volume_s)
  except BaseException:
    if held is not None:
      held.close()
    raise


def open_volume(
  path: pathlib.Path, text: str, looking: scans.Looking, limits: Limits
) -> scans.Scan:
  """A scan of slices; see `asking.open_scan`.

  Raises:
    BadFieldError: as there, or 422 if it is a picture.
    DataError: as there.
  """
  scan = asking.open_scan(path, text, looking, limits)
  if scan.kind == "picture":
    raise errors.BadFieldError(
      "image", "expected NIfTI or DICOM; POST /v1/segment takes pictures"
    )
  return scan
