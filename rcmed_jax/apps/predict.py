"""`rcmed predict`: ask a trained model about images and volumes."""

import argparse
from collections.abc import Sequence
import pathlib

from etils import epath
import tqdm

from rcmed_jax.apps import (
  answering,
  data_sources,
  predict_jobs,
  predict_one,
  predict_tasks,
  runs,
)
from rcmed_jax.ingest.volumes import geometry, windows
from rcmed_jax.serve import cleanup, scans, volumes

# Exit code where some jobs failed and the others are done.
SOME_FAILED = 1


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed predict --help`."""
  parser = _parser()
  args = parser.parse_args(argv)
  if args.list_tasks:
    return predict_tasks.show(args.workdir, as_json=args.json)
  if args.json:
    parser.error("--json is of --list-tasks; an answer is in answer.json")
  if bool(args.image) == bool(args.jobs):
    parser.error("give --image or --jobs, one of them")
  if args.image and not args.prompt:
    parser.error("give --prompt, what to ask about the image")
  asked = predict_one.Asked(
    prompt=args.prompt or "",
    describe=args.describe,
    looking=scans.Looking(args.axis, args.window, args.modality),
    cleanup=cleanup.Cleanup(args.smooth, args.min_mm3, args.largest),
    rtstruct=args.rtstruct,
  )
  if predict_jobs.is_one(args.image, args.pattern):
    return _one(args, asked)
  jobs = predict_jobs.find(
    args.image, args.pattern, args.jobs, asked, out=args.out
  )
  state = predict_jobs.run(
    jobs, lambda: _assistant(args), args.out, skip=args.skip_existing
  )
  counts = state.counts()
  print(
    f"predict: {counts['jobs']} jobs = {counts['done']} done + "
    f"{counts['failed']} failed + {counts['skipped']} skipped, listed in "
    f"{args.out / predict_jobs.MANIFEST}"
  )
  return SOME_FAILED if counts["failed"] else 0


def _one(args: argparse.Namespace, asked: predict_one.Asked) -> int:
  told = predict_one.identity(args.image)
  if args.skip_existing and predict_one.is_done(args.out, asked, told):
    print(f"predict: {args.out} holds the answer already")
    return 0
  scan = predict_one.open_scan(args.image, asked)
  assistant = _assistant(args)
  depth = scan.view.shape[0]
  with tqdm.tqdm(
    desc="predict",
    total=depth,
    unit="slice",
    mininterval=2,
    disable=scan.kind == "picture",
  ) as bar:
    said = predict_one.ask(assistant, scan, asked, bar.update)
  answered = predict_one.write(args.out, args.image, scan, asked, said, told)
  print(f"predict: {answered['text']}")
  for target in answered["targets"]:
    box = target.get("box_xyxy") or target.get("box_voxels")
    size = f", {target['ml']:.1f} ml" if target.get("ml") is not None else ""
    print(
      f"predict: {target['class']}: "
      + (
        f"box {box}, confidence {target['confidence']:.2f}{size}"
        if target["present"]
        else "absent"
      )
    )
  if isinstance(said, volumes.VolumeAnswer):
    print(
      f"predict: {said.slices} slices in {said.seconds:.1f} s, "
      f"{said.seconds / said.slices:.2f} s each; the first was answered after "
      f"{said.first_seconds:.1f} s"
    )
  print(f"predict: written to {args.out}")
  return 0


def _assistant(args: argparse.Namespace) -> answering.Assistant:
  return answering.load_assistant(
    args.workdir or runs.newest(),
    rows=args.batch,
    **answering.weights(args),
  )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    "rcmed predict",
    allow_abbrev=False,
    description="Writes masks, an overlay and answer.json for an image, a "
    "volume or many of them. Masks of volumes lie on the grid of their file.",
  )
  parser.add_argument(
    "--image",
    type=pathlib.Path,
    help="PNG, JPEG, TIFF, NIfTI, DICOM, or a folder: of one DICOM series, or "
    "of files, which are asked about one by one",
  )
  parser.add_argument(
    "--prompt", help='such as "Can you segment the liver in this CT image?"'
  )
  parser.add_argument(
    "--describe",
    action="store_true",
    help="the prompt asks for a description and names no target",
  )
  parser.add_argument(
    "--workdir",
    type=epath.Path,
    help="a run or a converted checkpoint; default: the newest in runs/",
  )
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("prediction")
  )
  parser.add_argument(
    "--list-tasks",
    action="store_true",
    help="print what the run was trained on, and ask nothing",
  )
  parser.add_argument(
    "--json", action="store_true", help="the list of tasks as JSON"
  )
  _add_many_flags(parser)
  _add_volume_flags(parser)
  answering.add_flags(parser)
  return parser


def _add_many_flags(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("many images")
  group.add_argument(
    "--pattern",
    default="",
    metavar="GLOB",
    help='files and series below the folder: "**/*.nii.gz"; default: all that '
    "lies in it",
  )
  group.add_argument(
    "--jobs",
    type=pathlib.Path,
    help="JSON [{image, prompt, name, axis, window, modality}, ...] or CSV of "
    "these columns; image alone must be there, relative to the file",
  )
  group.add_argument(
    "--skip-existing",
    action="store_true",
    help="leave out images whose answer to the same question is there "
    "already, to go on with a stopped run",
  )
  group.add_argument(
    "--batch",
    type=data_sources.positive,
    default=1,
    help="slices, or pictures, answered together (default: %(default)s)",
  )


def _add_volume_flags(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("volumes")
  group.add_argument("--axis", choices=geometry.AXES, default="axial")
  group.add_argument(
    "--window",
    choices=windows.CT,
    default="",
    help="of Hounsfield units; default: by what the prompt asks for",
  )
  group.add_argument(
    "--modality",
    default="",
    help='in words, "computed tomography"; default: as file or prompt say',
  )
  group.add_argument(
    "--smooth",
    action="store_true",
    help="a voxel is what two of it and its neighbours in the next slices are",
  )
  group.add_argument(
    "--min-mm3",
    type=float,
    default=0.0,
    metavar="MM3",
    help="leave out pieces that are smaller",
  )
  group.add_argument(
    "--largest", action="store_true", help="keep the largest piece of a class"
  )
  group.add_argument(
    "--rtstruct",
    action="store_true",
    help="of a DICOM series, write contours too, as an RT structure set",
  )
