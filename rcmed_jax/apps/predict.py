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
from rcmed_jax.data import prompts
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
  prompt = args.prompt or ""
  if args.describe:
    prompt = prompt or prompts.description_question(0)
  if args.image and not prompt:
    parser.error("give --prompt, what to ask about the image, or --describe")
  asked = predict_one.Asked(
    prompt=prompt,
    describe=args.describe,
    looking=scans.Looking(
      args.axis, args.window, args.modality, _trained(args.workdir)
    ),
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
  if shown := answered.get("shown"):
    print(
      f"predict: shown as {shown['modality']}, window {shown['window']}: "
      f"{shown['why']}"
    )
  if isinstance(said, volumes.VolumeAnswer):
    print(
      f"predict: {said.slices} slices in {said.seconds:.1f} s, "
      f"{said.seconds / said.slices:.2f} s each; the first was answered after "
      f"{said.first_seconds:.1f} s"
    )
  print(f"predict: written to {args.out}")
  return 0


def _trained(workdir: epath.Path | None) -> tuple[str, ...]:
  """Windows in which the run learnt that is to answer, if any is there."""
  try:
    return predict_tasks.windows_of(workdir or runs.newest())
  except FileNotFoundError:
    return ()  # which is said where it is needed


def _assistant(args: argparse.Namespace) -> answering.Assistant:
  return answering.load_assistant(
    args.workdir or runs.newest(),
    rows=args.batch,
    **answering.loading(args),
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
    help="ask for a description, in which no target is named; --prompt may say "
    "it in other words",
  )
  parser.add_argument(
    "--workdir",
    type=epath.Path,
    help="a run or a converted checkpoint; default: the newest in runs/",
  )
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    default=pathlib.Path("prediction"),
    help="folder of the answer, or of many images one folder each (default: "
    "%(default)s)",
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
  group.add_argument(
    "--axis",
    choices=geometry.AXES,
    default="axial",
    help="slices along it (default: %(default)s)",
  )
  group.add_argument(
    "--window",
    choices=windows.CHOICES,
    default="",
    help="of Hounsfield units, or percentiles of any values; default: of those "
    "that the run learnt in, the one for what the prompt asks for. answer.json "
    "says which it was",
  )
  group.add_argument(
    "--modality",
    default="",
    help="CT, MR, X-ray, ... or in words; default: as prompt, file or its name "
    "say",
  )
  group.add_argument(
    "--smooth",
    action="store_true",
    help="by majority: a voxel belongs to a target where at least two of three "
    "say so, itself and the same place in the slices before and after",
  )
  group.add_argument(
    "--min-mm3",
    type=float,
    default=0.0,
    metavar="MM3",
    help="leave out pieces that are smaller (default: %(default)s)",
  )
  group.add_argument(
    "--largest", action="store_true", help="keep the largest piece of a class"
  )
  group.add_argument(
    "--rtstruct",
    action="store_true",
    help="of a DICOM series, write contours too, as an RT structure set",
  )
