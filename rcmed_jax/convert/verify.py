"""A model held against a recorded case of the original code, tensor by tensor.

A case is an .npz of the original's names: `images_bgr_u8`, `input_ids` with
-200 at the image, `labels`, `gt_masks`, then whatever was recorded on the way:

  pixels             [B, 3, size, size], normalised and padded
  prenck             [B, g, g, width], the image encoder before its neck
  image_embeddings   [B, C, g, g], after it
  hidden, logits     [B, S, D], [B, S, V]
  feedback           [B, C, g, g], what language adds to the pixels
  seg_queries        [B, G, C]
  low_res_masks      [B, G, 4g, 4g]
  masks              [B, G, rows, columns] at the image's own size
  ce dice bce boundary loss
  grad/NAME          of the loss, by the tensor NAME of the checkpoint
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from rcmed_jax.convert import names, sizes
from rcmed_jax.data import images, npz
from rcmed_jax.data.tokens import IMAGE_TOKEN
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.model.image_encoder import normalize
from rcmed_jax.model.rcmed import Prediction, RCMed

INPUTS = ("images_bgr_u8", "input_ids", "labels", "gt_masks")
LOSSES = ("ce", "dice", "bce", "boundary", "loss")
GRADIENT = "grad/"

# The largest ||ours - reference|| / ||reference||. The original code itself
# agrees with vectors made in float64 to 2e-6.
TENSOR = 2e-4
GRADIENTS = 1e-3
LOSS = 1e-5  # absolute
# In bfloat16, of these alone: masks of random weights magnify its rounding.
BFLOAT16 = 3e-2
HELD_IN_BFLOAT16 = (
  "prenck",
  "image_embeddings",
  "hidden",
  "logits",
  "feedback",
  "seg_queries",
)

Arrays = dict[str, Any]
# (prediction, logits [B, T, V], case) -> (masks at the images' size, LOSSES by
# name)
Score = Callable[
  [Prediction, jax.Array, "Case"], tuple[jax.Array, dict[str, jax.Array]]
]


@dataclasses.dataclass(frozen=True)
class Case:
  """A recorded case, read for a model of certain sizes."""

  batch: Arrays  # what the model takes
  masks_BGIJ: np.ndarray  # float32, 0/1, at the images' own size
  references: Mapping[str, np.ndarray]  # by the case's names


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the comparison."""

  name: str
  error: float  # relative; of a loss absolute
  bound: float | None  # None: reported only

  @property
  def passed(self) -> bool:
    # Not `error > bound`: NaN must fail.
    return self.bound is None or self.error <= self.bound


def read(path: pathlib.Path, config: ModelConfig) -> Case:
  """A case from its file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no case, or has other ids than the model.
  """
  if not path.is_file():
    raise FileNotFoundError(f"{path} is missing; give the case's .npz file.")
  try:
    arrays = npz.read(path)
  except ValueError as error:
    raise ValueError(
      f"{path} is no .npz file, or damaged ({error}); copy it again."
    ) from error
  lacking = [name for name in INPUTS if name not in arrays]
  if lacking:
    raise ValueError(
      f"{path} lacks {', '.join(lacking)}, without which it is no case; record "
      "the inputs with it."
    )
  _require_inputs(path, arrays)
  references = {k: v for k, v in arrays.items() if k not in INPUTS}
  for size in ("resized_hw", "original_hw"):
    references.pop(size, None)
  return Case(_batch(path, arrays, config), arrays["gt_masks"], references)


def without_gradients(case: Case) -> Case:
  """The case's forward pass alone."""
  references = {
    name: array
    for name, array in case.references.items()
    if not name.startswith(GRADIENT)
  }
  return dataclasses.replace(case, references=references)


def outputs(
  model: RCMed, case: Case, score: Score
) -> tuple[Arrays, dict[str, np.ndarray]]:
  """All that a case may hold of the forward pass, and the gradients it holds.

  Args:
    model: float32, or bfloat16 arithmetic.
    case: from `read`.
    score: masks at the images' size and the losses.

  Raises:
    ValueError: a gradient is of a tensor that the model does not have.
  """
  graph, params, constants = nnx.split(model, nnx.Param, ...)
  entries = {entry.release: entry for entry in names.entries(model.config)}
  wanted = [
    name.removeprefix(GRADIENT)
    for name in case.references
    if name.startswith(GRADIENT)
  ]
  unknown = [name for name in wanted if name not in entries]
  if unknown:
    raise ValueError(
      f"the case holds gradients of {', '.join(unknown)}, which this model "
      "does not have; give the checkpoint that the case was recorded with."
    )

  @jax.jit
  def run(params: Any, constants: Any, batch: Arrays) -> tuple[Any, Arrays]:
    def loss(params: Any) -> tuple[jax.Array, Arrays]:
      model = nnx.merge(graph, params, constants)
      prediction = model(batch)
      logits_BTV = model.language.logits(prediction.states_BTD)
      masks_BGIJ, losses = score(prediction, logits_BTV, case)
      low = {"low_res_masks": prediction.masks_KBGYX[-1], "masks": masks_BGIJ}
      return losses["loss"], {**_parts(model, batch), **low, **losses}

    if wanted:
      return jax.grad(loss, has_aux=True)(params)
    return nnx.State({}), loss(params)[1]

  gradients, found = run(params, constants, case.batch)
  flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(gradients), sep=".")
  return jax.device_get(found), {
    name: entries[name].transform.to_release(
      np.asarray(flat[entries[name].path])[entries[name].index]
    )
    for name in wanted
  }


def compare(
  found: Mapping[str, np.ndarray],
  references: Mapping[str, np.ndarray],
  *,
  bfloat16: bool = False,
) -> list[Row]:
  """A row for each recorded tensor.

  Raises:
    ValueError: one that lists every tensor that we do not compute, or of
      another shape than the case's.
  """
  faults, rows = [], []
  for name, reference in references.items():
    ours = found.get(name)
    if ours is None or ours.shape != reference.shape:
      shape = "nothing" if ours is None else ours.shape
      faults.append(f"{name}: expected {reference.shape}, computed {shape}")
      continue
    difference = np.linalg.norm(np.ravel(np.float64(ours) - reference))
    size = 1.0 if name in LOSSES else np.linalg.norm(np.ravel(reference))
    bound = _bound(name, bfloat16=bfloat16)
    # Of an all-zero reference the error itself.
    rows.append(Row(name, float(difference / (size or 1.0)), bound))
  if faults:
    raise ValueError(
      "the case is of other sizes than the checkpoint:\n  "
      + "\n  ".join(faults)
    )
  return rows


def _bound(name: str, *, bfloat16: bool) -> float | None:
  if bfloat16:
    return BFLOAT16 if name in HELD_IN_BFLOAT16 else None
  if name.startswith(GRADIENT):
    return GRADIENTS
  return LOSS if name in LOSSES else TENSOR


def _require_inputs(path: pathlib.Path, arrays: Arrays) -> None:
  """Refuses inputs that do not belong together."""
  image, ids, labels, masks = (arrays[name] for name in INPUTS)
  if not (
    ids.ndim == 2
    and masks.ndim == 4
    and image.dtype == np.uint8
    and image.shape == (len(ids), *masks.shape[2:], 3)
    and labels.shape == ids.shape
    and len(masks) == len(ids)
  ):
    held = ", ".join(
      f"{name} {arrays[name].dtype}{list(arrays[name].shape)}"
      for name in INPUTS
    )
    raise ValueError(
      f"{path}: expected images_bgr_u8 uint8[B, rows, columns, 3], input_ids "
      "and labels [B, T], gt_masks [B, G, rows, columns]; received "
      f"{held}. Record the inputs again."
    )
  alone_B = (ids == IMAGE_TOKEN).sum(axis=1) == 1
  if not alone_B.all():
    raise ValueError(
      f"{path}: row {int(np.argmin(alone_B))} of input_ids must hold "
      f"{IMAGE_TOKEN}, the image, once; record the inputs again."
    )


def _batch(path: pathlib.Path, arrays: Arrays, config: ModelConfig) -> Arrays:
  """The inputs as the data pipeline would have made them."""
  tokens_BT = arrays["input_ids"].astype(np.int32)
  vocabulary = config.language.vocabulary
  if tokens_BT.max() >= vocabulary:
    raise ValueError(
      f"{path}: input_ids go up to {tokens_BT.max()}, the checkpoint has "
      f"{vocabulary} tokens; give the checkpoint that the case was recorded "
      "with."
    )
  count, targets = arrays["gt_masks"].shape[:2]
  seg_BG = np.zeros((count, targets), np.int32)
  valid_BG = np.zeros((count, targets), bool)
  for b, tokens_T in enumerate(tokens_BT):
    found = np.flatnonzero(tokens_T == vocabulary - sizes.SEG_FROM_END)
    if len(found) > targets:
      raise ValueError(
        f"{path}: row {b} of input_ids has {len(found)} [SEG] and gt_masks "
        f"{targets} masks; record one mask for each."
      )
    seg_BG[b, : len(found)] = found
    valid_BG[b, : len(found)] = True
  prepared = [
    images.prepare(image_IJC[..., ::-1], config.image.image_size)
    for image_IJC in arrays["images_bgr_u8"]
  ]
  return {
    "pixels_BIJC": np.stack([pixels for pixels, _ in prepared]),
    "extent_B2": np.stack([extent for _, extent in prepared]),
    "tokens_BT": tokens_BT,
    "length_B": np.full(count, tokens_BT.shape[1], np.int32),
    "labels_BT": arrays["labels"].astype(np.int32),
    "seg_BG": seg_BG,
    "valid_BG": valid_BG,
  }


def _parts(model: RCMed, batch: Arrays) -> Arrays:
  """What passes between the parts, in the original's layouts."""
  pixels_BIJC = normalize(
    batch["pixels_BIJC"], batch["extent_B2"], model.config.channel_order
  )
  tokens_BYXD, features_BYXC = model.image_encoder(pixels_BIJC)
  visual_BED, _ = model.encode_image(batch["pixels_BIJC"], batch["extent_B2"])
  states_BSD, image_B = model.embed(batch["tokens_BT"], visual_BED)
  hidden_BSD = model.language(states_BSD)
  text_BTD, visual_BED = model.part(hidden_BSD, image_B)
  before_BG1 = jnp.maximum(batch["seg_BG"] - 1, 0)[:, :, None]
  return {
    "pixels": jnp.moveaxis(pixels_BIJC, -1, 1),
    "prenck": tokens_BYXD,
    "image_embeddings": jnp.moveaxis(features_BYXC, -1, 1),
    "hidden": hidden_BSD,
    "logits": model.language.logits(hidden_BSD),
    "feedback": jnp.moveaxis(
      model.guide(jnp.zeros_like(features_BYXC), visual_BED), -1, 1
    ),
    "seg_queries": model.query(
      jnp.take_along_axis(text_BTD, before_BG1, axis=1)
    ),
  }
