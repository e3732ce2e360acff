"""One job of `rcmed predict`: what is asked, and the files of its answer.

  answer.json            text, targets, modality, what it is an answer about
                         and to; of volumes also timings
  overlay.png            of a picture
  mask-N-NAME.png        target N of a picture
  mask-N-NAME.nii.gz     of a NIfTI or NRRD volume, on its grid
  labels.nii.gz          all of them, N + 1 in voxels of N, if none overlap
  segmentation.dcm       of a DICOM series, a segment a target
  structures.dcm         of a DICOM series, where asked for: their contours
  overlay-N-NAME.png     of a volume, the slice that shows most of target N,
                         in its true proportions

`answer.json` is written last: where it lies, the answer is whole. It says
nothing of whom a DICOM image is of, nor where its file lay. That of a picture
has no timings, so that the same answer makes the same file.
"""

from collections.abc import Callable, Sequence
import dataclasses
import glob
import hashlib
import json
import os
import pathlib
import re
from typing import Any

import cv2
import numpy as np

from rcmed_jax.data import checks, files
from rcmed_jax.eval import overlays
from rcmed_jax.ingest.dicom import privacy
from rcmed_jax.serve import (
  dicom_rtstruct_out,
  dicom_seg_out,
  label_maps,
  nifti_out,
  scans,
  volumes,
)
from rcmed_jax.serve.assistant import Answer, Assistant, Question
from rcmed_jax.serve.cleanup import Cleanup

ANSWER = "answer.json"
SEGMENTATION = "segmentation.dcm"
STRUCTURES = "structures.dcm"
LABELS = "labels.nii.gz"

# Pixels to which an overlay is enlarged at most, however flat its voxels are.
_MOST_SIDE = 4096

# Names of masks and overlays; nothing else is ever deleted.
_OURS = re.compile(
  r"(mask|overlay)-\d+-[\w-]+\.(png|nii\.gz)|(segmentation|structures)\.dcm"
  r"|labels\.nii\.gz"
)

_MOST_TOLD = 5  # files of a series that cannot be read, by name

# Headers whose voxels lie in another file: of its name, or named in a line.
_HEADERS = (".hdr", ".nhdr")
_DATA_FILE = re.compile(rb"(?im)^data ?file:[ \t]*(\S.*?)\s*$")


@dataclasses.dataclass(frozen=True)
class Asked:
  """What is asked, and how a volume is looked at."""

  prompt: str
  describe: bool = False
  looking: scans.Looking = dataclasses.field(default_factory=scans.Looking)
  cleanup: Cleanup = dataclasses.field(default_factory=Cleanup)
  rtstruct: bool = False  # whether a series gets a structure set as well


def open_scan(image: pathlib.Path, asked: Asked) -> scans.Scan:
  """What is asked about.

  Raises:
    DataError: as `scans.open_scan`, or files of a series cannot be read.
    ValueError: contours are asked for, and there is nowhere to draw them; or
      values look like Hounsfield units, and nothing says what they are.
  """
  scan = scans.open_scan(image, asked.prompt, asked.looking)
  if scan.faults:  # a slice too few would not be seen in the answer
    raise _shortened(image, scan.faults)
  if doubt := scan.doubt():
    raise ValueError(
      f"{image}: {doubt}; say --modality CT, or --window percentiles if "
      "it is no computed tomography."
    )
  if asked.rtstruct and (scan.kind != "dicom" or scan.voxel_mm3 is None):
    raise ValueError(
      "--rtstruct draws contours on a DICOM series that says where its slices "
      "lie, which this is not; leave it out."
    )
  return scan


def is_done(out: pathlib.Path, asked: Asked, input_sha256: str) -> bool:
  """Whether the folder holds the answer to the same question about this input.

  Which model gave it is not asked. An answer that does not say what it is
  about is none: a folder's name alone may be that of another patient.

  Args:
    input_sha256: see `identity`.
  """
  held = _held(out)
  return (
    bool(input_sha256)
    and held.get("input_sha256") == input_sha256
    and held.get("prompt") == asked.prompt
    and held.get("options") == _options(asked)
  )


def identity(image: pathlib.Path) -> str:
  """SHA-256 of what is asked about, wherever it lies; "": it cannot be read.

  Of a folder, of the sums of all files in it; of a header, with the
  files that hold its voxels.
  """
  try:
    folder = image.is_dir()
    parts = privacy.files(image) if folder else [image, *_beside(image)]
    sums = []
    for part in parts:
      with part.open("rb") as file:
        sums.append(hashlib.file_digest(file, "sha256").hexdigest())
  except OSError:
    return ""
  if len(sums) == 1:
    return sums[0]
  # In the order of the sums: a file's name is no part of a series.
  return hashlib.sha256("\n".join(sorted(sums)).encode()).hexdigest()


def ask(
  assistant: Assistant,
  scan: scans.Scan,
  asked: Asked,
  on_slice: Callable[[], Any] = lambda: None,
) -> Answer | volumes.VolumeAnswer:
  """The answer, of which nothing is written yet.

  Args:
    on_slice: called after each slice of a volume.

  Raises:
    DataError: the scan cannot be read to its end.
    ValueError: as `Assistant.stream` and `cleanup.clean`.
  """
  if scan.kind == "picture":
    one = question(scan, asked)
    return assistant.ask(one.image_IJC, one.text, describe=one.describe)
  return volumes.answer(
    assistant,
    scan,
    asked.prompt,
    describe=asked.describe,
    cleanup=asked.cleanup,
    on_slice=on_slice,
  )


def question(scan: scans.Scan, asked: Asked) -> Question:
  """What is asked about a picture."""
  (image_IJC,) = scan.pictures()
  return Question(image_IJC, asked.prompt, asked.describe)


def write(
  out: pathlib.Path,
  image: pathlib.Path,
  scan: scans.Scan,
  asked: Asked,
  said: Answer | volumes.VolumeAnswer,
  input_sha256: str | None = None,
) -> dict[str, Any]:
  """What `answer.json` says; it and the masks lie in `out` then.

  Args:
    input_sha256: see `identity`; None: nobody will ask whether it is done.
  """
  _begin(out)
  more: dict[str, Any] = {}
  if isinstance(said, volumes.VolumeAnswer):
    entries = _write_volume(out, scan, said, asked)
    more = _of_volume(out, scan, said, asked)
  else:
    (image_IJC,) = scan.pictures()
    entries = _write_picture(out, image_IJC, said)
  answered = {
    # Paths of DICOM files name patients.
    "image": "dicom" if scan.kind == "dicom" else str(image),
    "prompt": asked.prompt,
    "text": said.text,
    "modality": said.modality,
    "targets": entries,
    "options": _options(asked),
    **more,
  }
  if input_sha256 is not None:
    answered["input_sha256"] = input_sha256
  write_json(out / ANSWER, answered)
  return answered


def write_json(path: pathlib.Path, values: Any) -> None:
  """Writes a file that is whole, or the one before, at any moment."""
  files.write_whole(path, json.dumps(values, indent=2) + "\n")


def _held(out: pathlib.Path) -> dict[str, Any]:
  """An earlier answer; {} where there is none."""
  try:
    held = json.loads((out / ANSWER).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return {}
  return held if isinstance(held, dict) else {}


def _shortened(
  image: pathlib.Path, faults: Sequence[checks.DataError]
) -> checks.DataError:
  """The refusal of a series that may lack slices."""
  told = ", ".join(f"{one.path} ({one.message})" for one in faults[:_MOST_TOLD])
  more = len(faults) - _MOST_TOLD
  return checks.DataError(
    image,
    "series",
    f"{len(faults)} of its files cannot be read, and slices may be missing: "
    f"{told}{f' and {more} more' if more > 0 else ''}",
    "Get them again; or, if they are none of its slices, move them elsewhere",
  )


def _beside(header: pathlib.Path) -> list[pathlib.Path]:
  """Files with a header's voxels; of a file that is no header, none."""
  if header.suffix.lower() not in _HEADERS:
    return []
  found = {*header.parent.glob(f"{glob.escape(header.stem)}.*")}
  for name in _DATA_FILE.findall(header.read_bytes()):
    found.add(header.parent / os.fsdecode(name))
  return sorted(p for p in found - {header} if p.is_file())


def _begin(out: pathlib.Path) -> None:
  """A folder without an answer. Of an earlier one, what it lists goes too."""
  out.mkdir(parents=True, exist_ok=True)
  held = _held(out)
  names = [held.get("labels"), held.get("structures")]
  targets = held.get("targets")
  for target in targets if isinstance(targets, list) else ():
    if isinstance(target, dict):
      names += [target.get("mask"), target.get("overlay")]
  (out / ANSWER).unlink(missing_ok=True)
  for name in names:
    if isinstance(name, str) and _OURS.fullmatch(name):
      (out / name).unlink(missing_ok=True)


def _write_picture(
  out: pathlib.Path, image_IJC: np.ndarray, said: Answer
) -> list[dict[str, Any]]:
  entries = []
  masks = []
  for number, target in enumerate(said.targets):
    entry: dict[str, Any] = {
      "class": target.name,
      "present": target.present,
      "confidence": round(target.confidence, 4),
      "box_xyxy": target.box,
      "mask": None,
    }
    if target.present and target.mask_IJ is not None:
      entry["mask"] = f"mask-{number}-{_safe(target.name)}.png"
      _save(out / entry["mask"], target.mask_IJ.astype(np.uint8) * 255)
      masks.append(target.mask_IJ)
    entries.append(entry)
  _save(out / "overlay.png", overlays.painted(image_IJC, masks)[..., ::-1])
  return entries


def _write_volume(
  out: pathlib.Path,
  scan: scans.Scan,
  said: volumes.VolumeAnswer,
  asked: Asked,
) -> list[dict[str, Any]]:
  pictures = scan.some(
    {target.shown for target in said.targets if target.shown is not None}
  )
  entries = []
  segments = []
  for number, target in enumerate(said.targets):
    entry: dict[str, Any] = {
      "class": target.name,
      "present": target.present,
      "confidence": round(target.confidence, 4),
      "box_voxels": target.box,
      "ml": None if target.ml is None else round(target.ml, 4),
      "mask": None,
    }
    if target.mask is not None and target.shown is not None:
      end = f"{number}-{_safe(target.name)}"
      if scan.kind != "dicom":
        entry["mask"] = f"mask-{end}.nii.gz"
        _write_nifti(out / entry["mask"], target.mask, scan)
      else:
        segments.append((target.name, target.mask))
        entry |= {"mask": SEGMENTATION, "segment": len(segments)}
      entry["overlay"] = f"overlay-{end}.png"
      mask_IJ = scan.view.picture(target.mask, target.shown)
      painted_IJC = overlays.painted(
        _in_proportion(pictures[target.shown], scan.view.spacing_mm),
        [_in_proportion(mask_IJ.astype(np.uint8), scan.view.spacing_mm) > 0],
      )
      _save(out / entry["overlay"], painted_IJC[..., ::-1])
    entries.append(entry)
  if segments:
    dicom_seg_out.write(out / SEGMENTATION, segments, scan.files, scan.order)
  if segments and asked.rtstruct:
    dicom_rtstruct_out.write(
      out / STRUCTURES,
      segments,
      scan.files,
      scan.order,
      [overlays.color(place) for place in range(len(segments))],
    )
  return entries


def _in_proportion(
  image: np.ndarray, spacing_mm: tuple[float, float, float] | None
) -> np.ndarray:
  """A slice enlarged so that its pixels are square, values as they were."""
  if spacing_mm is None:
    return np.ascontiguousarray(image)
  steps = np.array(spacing_mm[1:])
  sides = np.array(image.shape[:2])
  wanted = np.minimum(sides * steps / steps.min(), _MOST_SIDE).round()
  rows, columns = np.maximum(wanted, sides).astype(int).tolist()
  return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_NEAREST)


def _of_volume(
  out: pathlib.Path,
  scan: scans.Scan,
  said: volumes.VolumeAnswer,
  asked: Asked,
) -> dict[str, Any]:
  """What `answer.json` says of volumes alone."""
  labels = None
  if scan.kind != "dicom":
    labels = volumes.label_map(said.targets)
  if labels is not None:
    _write_nifti(out / LABELS, labels, scan)
  return {
    # What the model saw: other values than it was trained on mean nothing.
    "shown": scan.shown().json() if scan.shown else None,
    "labels": None if labels is None else LABELS,
    # Its regions have the numbers of the segments.
    "structures": STRUCTURES if (out / STRUCTURES).is_file() else None,
    "texts": [{"text": text, "slices": count} for text, count in said.said],
    "timings": {
      "slices": said.slices,
      "seconds": round(said.seconds, 3),
      "seconds_to_first": round(said.first_seconds, 3),
      "seconds_per_slice": round(said.seconds / said.slices, 4),
    },
  }


def _options(asked: Asked) -> dict[str, Any]:
  return {
    "describe": asked.describe,
    "rtstruct": asked.rtstruct,
    **dataclasses.asdict(asked.looking),
    "trained": [*asked.looking.trained],  # as JSON gives it back
    **dataclasses.asdict(asked.cleanup),
  }


def _write_nifti(
  path: pathlib.Path, voxels: np.ndarray, scan: scans.Scan
) -> None:
  """Writes a mask or label map on the grid of the scan's file."""
  if scan.kind == "nifti":
    nifti_out.write(path, voxels, scan.path)
  else:
    kind = np.uint8 if voxels.dtype == bool else voxels.dtype
    label_maps.write_volume(path, voxels.astype(kind), scan)


def _safe(name: str) -> str:
  return re.sub(r"[^\w-]+", "_", name) or "unnamed"


def _save(path: pathlib.Path, values: np.ndarray) -> None:
  if not cv2.imwrite(str(path), values):
    raise OSError(f"{path} could not be written; is the disk full?")
