"""`rcmed adapt`: a class that the model never saw, learnt from examples."""

import argparse
from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

from etils import epath
import numpy as np

from rcmed_jax.apps import answering
from rcmed_jax.data import prompts, supports
from rcmed_jax.eval import metrics
from rcmed_jax.serve import new_classes
from rcmed_jax.serve.assistant import Assistant, Question
from rcmed_jax.serve.new_classes import NewClass

_SUFFIX = ".npz"  # of a class file

# What each strength is of; see `model/adapt.py`.
_STRENGTHS = {
  "pixels": "how much pixels that look like the class are turned up",
  "tokens": "how much the image's words are, where the class lay in examples",
  "logits": "how much likelier the mask gets where the class lay in examples",
}

Example = tuple[np.ndarray, np.ndarray]  # image_IJC, mask_IJ


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed adapt --help`."""
  args = _parser().parse_args(argv)
  if args.out.suffix != _SUFFIX:
    raise ValueError(
      f"--out={args.out}: expected a name that ends in {_SUFFIX}; the report "
      "gets the same name with .json."
    )
  found = supports.read(args.support, args.name, args.modality)
  triplets = [record.load() for record in found]
  examples = [(one.image_IJC, one.masks_GIJ[0]) for one in triplets]
  told: dict[str, Any] = dict(
    strengths=new_classes.Strengths(args.pixels, args.tokens, args.logits),
    prior=args.prior,
  )
  assistant = answering.load_assistant(args.checkpoint)
  learnt = assistant.learn(args.name, triplets[0].modality, examples, **told)
  args.out.parent.mkdir(parents=True, exist_ok=True)
  learnt.save(args.out)
  print(
    f"adapt: {args.name}: {learnt.supports} of {len(examples)} examples used, "
    f"masks agree in place by {learnt.agreement:.2f}, prior "
    f"{'on' if learnt.strengths.logits or learnt.strengths.tokens else 'off'}"
  )
  gains = left_out(assistant, learnt, examples, **told)
  _report(args.out, learnt, [one.id for one in triplets], gains)
  print(f"adapt: written to {args.out}")
  return 0


def left_out(
  assistant: Assistant,
  learnt: NewClass,
  examples: Sequence[Example],
  **told: Any,
) -> list[tuple[float, float]]:
  """Dice of each example without and with what the others teach.

  Empty for a single example, which has no others. An example whose others
  teach nothing (their masks are too small) has Dice without in both places.
  """
  gains: list[tuple[float, float]] = []
  plain = learnt.without_effect()
  for index, (image_IJC, mask_IJ) in enumerate(examples):
    others = [*examples[:index], *examples[index + 1 :]]
    if not others:
      return []
    try:
      taught = assistant.learn(learnt.name, learnt.modality, others, **told)
    except ValueError:
      taught = plain
    text = prompts.question((learnt.name,), learnt.modality, template=0)
    question = Question(image_IJC, text)
    before, after = (
      _dice(assistant, question, one, mask_IJ) for one in (plain, taught)
    )
    gains.append((before, after))
  return gains


def _dice(
  assistant: Assistant, question: Question, one: NewClass, mask_IJ: np.ndarray
) -> float:
  found_IJ = assistant.show(question, one).targets[0].mask_IJ
  if found_IJ is None:
    found_IJ = np.zeros_like(mask_IJ)
  return metrics.count(found_IJ, mask_IJ).dice


def _report(
  out: pathlib.Path,
  learnt: NewClass,
  ids: Sequence[str],
  gains: Sequence[tuple[float, float]],
) -> None:
  """Prints the gains and writes them beside the class file."""
  told: dict[str, Any] = {
    "class": learnt.name,
    "modality": learnt.modality,
    "supports": learnt.supports,
    "agreement": learnt.agreement,
    "strengths": dataclasses.asdict(learnt.strengths),
    "left_out": [
      {"image": id, "dice_without": before, "dice_with": after}
      for id, (before, after) in zip(ids, gains, strict=False)
    ],
  }
  if gains:
    before, after = np.mean(gains, axis=0)
    told |= {"dice_without": float(before), "dice_with": float(after)}
    print("adapt: each example, asked after learning from the others:")
    for row in told["left_out"]:
      print(
        f"adapt:   {row['image']}: Dice {row['dice_without']:.3f} without, "
        f"{row['dice_with']:.3f} with"
      )
    print(f"adapt:   mean: {before:.3f} without, {after:.3f} with")
  else:
    print("adapt: one example leaves none to ask; give two or more for gains")
  path = out.with_suffix(".json")
  path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    "rcmed adapt",
    allow_abbrev=False,
    description="Learns a new class from examples, without training. The file "
    "serves `rcmed predict`, `rcmed serve` and `rcmed evaluate` as --classes.",
  )
  parser.add_argument(
    "--checkpoint",
    type=epath.Path,
    required=True,
    help="a run or a converted checkpoint",
  )
  parser.add_argument(
    "--support",
    type=pathlib.Path,
    required=True,
    help="folder with an index, or with images/ and masks/ of the same names",
  )
  parser.add_argument(
    "--class", dest="name", required=True, help="what requests will call it"
  )
  parser.add_argument(
    "--modality",
    help="CT, MR, X-ray, ... or in words; default: as an index says, or the "
    "names of images, MODALITY--NAME.png",
  )
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    required=True,
    help="the class file, .npz; the report lies beside it as .json",
  )
  parser.add_argument(
    "--prior",
    choices=new_classes.PRIORS,
    default="auto",
    help="whether it matters where the class lay; default: auto, where two or "
    "more masks agree",
  )
  for field in dataclasses.fields(new_classes.Strengths):
    parser.add_argument(
      f"--{field.name}",
      type=float,
      default=field.default,
      help=f"{_STRENGTHS[field.name]}; 0: not at all (default: %(default)s)",
    )
  return parser
