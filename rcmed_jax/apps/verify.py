"""`rcmed convert verify`: a checkpoint against a case of the original code."""

import argparse
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcmed_jax.convert import importer, store, torch_io
from rcmed_jax.convert import verify as verifying
from rcmed_jax.model import int8
from rcmed_jax.model.rcmed import Prediction, RCMed
from rcmed_jax.train import losses

FAILED = 1  # exit code where a tensor is past its bound


def add_parser(commands: Any) -> None:
  """Adds `verify` to the commands of `rcmed convert`."""
  parser = commands.add_parser(
    "verify", help="hold a checkpoint against a recorded case"
  )
  parser.set_defaults(run=run)
  parser.add_argument(
    "path",
    metavar="CKPT",
    type=pathlib.Path,
    help="what import wrote, or a checkpoint under the original names",
  )
  parser.add_argument(
    "case",
    metavar="CASE",
    type=pathlib.Path,
    help=".npz; rcmed_jax/convert/verify.py says what it holds",
  )
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    default="float32",
    help="of the arithmetic; default: float32",
  )
  parser.add_argument(
    "--int8",
    action="store_true",
    help="hold the language model in 8 bits; errors are reported, not judged",
  )
  parser.add_argument(
    "--dump", type=pathlib.Path, help="write all that was computed, .npz"
  )


def run(args: argparse.Namespace) -> int:
  """Prints an error for each tensor of the case; 1 where one is too large."""
  model = _load(args.path, args.dtype)
  held = verifying.read(args.case, model.config)
  if args.int8:
    int8.quantize(model)
    held = verifying.without_gradients(held)
  found, gradients = verifying.outputs(model, held, score)
  found |= {verifying.GRADIENT + name: g for name, g in gradients.items()}
  rows = verifying.compare(
    found, held.references, bfloat16=args.dtype == "bfloat16"
  )
  if args.int8:
    rows = [dataclasses.replace(row, bound=None) for row in rows]
  if args.dump:
    single: dict[str, Any] = {k: np.float32(v) for k, v in found.items()}
    np.savez(args.dump, **single)
  width = max(len(row.name) for row in rows)
  print(f"{'tensor':<{width}}  {'error':>8}  {'bound':>8}")
  for row in rows:
    bound = "-" if row.bound is None else f"{row.bound:.0e}"
    verdict = "" if row.passed else "  too large"
    print(f"{row.name:<{width}}  {row.error:>8.1e}  {bound:>8}{verdict}")
  if args.int8:
    print(f"verify: {len(rows)} tensors, none of them judged")
    return 0
  failed = sum(not row.passed for row in rows)
  print(f"verify: {len(rows) - failed} of {len(rows)} tensors within bounds")
  return FAILED if failed else 0


def score(
  prediction: Prediction, logits_BTV: jax.Array, case: verifying.Case
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Masks at the images' own size, and the release's losses there."""
  extent_2 = case.batch["extent_B2"][0]  # the same for all images of a case
  shape = case.masks_BGIJ.shape[-2:]
  masks_BGIJ = jnp.stack(
    [
      losses.original_size_logits(
        logits_GYX,
        image_size=case.batch["pixels_BIJC"].shape[1],
        extent=(int(extent_2[0]), int(extent_2[1])),
        original=(shape[0], shape[1]),
      )
      for logits_GYX in prediction.masks_KBGYX[-1]
    ]
  )
  terms = losses.mask_terms(
    masks_BGIJ,
    jnp.asarray(case.masks_BGIJ),
    jnp.ones(masks_BGIJ.shape, bool),
    jnp.asarray(case.batch["valid_BG"]),
  )
  text = losses.text_loss(logits_BTV, jnp.asarray(case.batch["labels_BT"]))
  weights = losses.LossConfig()
  total = weights.text * text + sum(
    getattr(weights, name) * term for name, term in terms.items()
  )
  return masks_BGIJ, {"ce": text, **terms, "loss": total}


def _load(path: pathlib.Path, dtype: str) -> RCMed:
  """The model of a checkpoint of either kind, its weights as stored."""
  if store.is_converted(path):
    held = store.read_whole(path)
    config, arrays = held.model, torch_io.nested(held.tensors)
  else:
    source = importer.look(path, "syre")
    config = source.model
    arrays = torch_io.load_into(config, source.tensors)
  return torch_io.build(dataclasses.replace(config, dtype=dtype), arrays)
