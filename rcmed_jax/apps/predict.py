"""`rcmed predict`: ask a trained model about one image."""

import argparse
from collections.abc import Sequence
import json
import pathlib
import re
from typing import Any

import cv2
from etils import epath
import numpy as np

from rcmed_jax.apps import answering, runs
from rcmed_jax.data import images
from rcmed_jax.eval import overlays
from rcmed_jax.serve.assistant import Answer


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed predict --help`."""
  parser = argparse.ArgumentParser(
    "rcmed predict",
    allow_abbrev=False,
    description="Writes masks, an overlay and answer.json for one image.",
  )
  parser.add_argument("--image", required=True, help="PNG, JPEG or TIFF")
  parser.add_argument(
    "--prompt",
    required=True,
    help='such as "Can you segment the liver in this CT image?"',
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
  answering.add_flags(parser)
  args = parser.parse_args(argv)
  image_IJC = images.read(args.image)
  assistant = answering.load_assistant(
    args.workdir or runs.newest(), classes=args.classes, in_int8=args.int8
  )
  answer = assistant.ask(image_IJC, args.prompt, describe=args.describe)
  write(args.out, image_IJC, answer, image=args.image, prompt=args.prompt)
  print(f"predict: {answer.text}")
  for target in answer.targets:
    print(
      f"predict: {target.name}: "
      + (
        f"box {target.box}, confidence {target.confidence:.2f}"
        if target.present
        else "absent"
      )
    )
  print(f"predict: written to {args.out}")
  return 0


def write(
  out: pathlib.Path,
  image_IJC: np.ndarray,
  answer: Answer,
  *,
  image: str,
  prompt: str,
) -> None:
  """Writes `mask-<n>-<name>.png` a target, `overlay.png` and `answer.json`."""
  out.mkdir(parents=True, exist_ok=True)
  targets: list[dict[str, Any]] = []
  for number, target in enumerate(answer.targets):
    entry: dict[str, Any] = {
      "class": target.name,
      "present": target.present,
      "confidence": round(target.confidence, 4),
      "box_xyxy": target.box,
      "mask": None,
    }
    if target.present and target.mask_IJ is not None:
      name = re.sub(r"[^\w-]+", "_", target.name) or "unnamed"
      entry["mask"] = f"mask-{number}-{name}.png"
      _save(out / entry["mask"], target.mask_IJ.astype(np.uint8) * 255)
    targets.append(entry)
  shown = [
    target.mask_IJ
    for target in answer.targets
    if target.present and target.mask_IJ is not None
  ]
  _save(out / "overlay.png", overlays.painted(image_IJC, shown)[..., ::-1])
  answered = {
    "image": image,
    "prompt": prompt,
    "text": answer.text,
    "modality": answer.modality,
    "targets": targets,
  }
  (out / "answer.json").write_text(
    json.dumps(answered, indent=2) + "\n", encoding="utf-8"
  )


def _save(path: pathlib.Path, values: np.ndarray) -> None:
  if not cv2.imwrite(str(path), values):
    raise OSError(f"{path} could not be written; is the disk full?")
