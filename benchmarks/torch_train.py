"""One training step in PyTorch: losses, clipping and AdamW, as ours.

The formulas are those of `rcmed_jax/train/losses.py` and `optimizer.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
import torch_model

from rcmed_jax.train.losses import LossConfig
from rcmed_jax.train.optimizer import OptimizerConfig

Terms = dict[str, torch.Tensor]


class Trainer:
  """Steps of AdamW at a constant rate.

  Weights in bfloat16 have float32 copies, which is what the optimizer moves.
  """

  def __init__(
    self,
    model: torch_model.RCMed,
    losses: LossConfig,
    optimizer: OptimizerConfig,
  ):
    self.model, self.losses, self.config = model.train(), losses, optimizer
    self.trained = [p for p in model.parameters() if p.requires_grad]
    self.masters = [
      p if p.dtype == torch.float32 else p.detach().float()
      for p in self.trained
    ]
    self.optimizer = torch.optim.AdamW(
      self.masters,
      lr=optimizer.learning_rate,
      betas=(optimizer.b1, optimizer.b2),
      eps=optimizer.eps,
      weight_decay=optimizer.weight_decay,
      fused=True,
    )

  def gradients(self, batch: torch_model.Batch) -> Terms:
    """The total loss and its terms; gradients are left on the weights."""
    for weight in self.trained:
      weight.grad = None
    prediction = self.model(batch)
    terms = losses(prediction, self.model.llama.lm_head, batch, self.losses)
    terms["loss"].backward()
    return terms

  def step(self, batch: torch_model.Batch) -> Terms:
    """The same, and the weights moved."""
    terms = self.gradients(batch)
    for weight, master in zip(self.trained, self.masters, strict=True):
      if weight is not master and weight.grad is not None:
        master.grad, weight.grad = weight.grad.float(), None
    nn.utils.clip_grad_norm_(self.masters, self.config.clip_norm)
    self.optimizer.step()
    with torch.no_grad():
      for weight, master in zip(self.trained, self.masters, strict=True):
        if weight is not master:
          weight.copy_(master)
    return terms


def losses(
  prediction: torch_model.Prediction,
  head: Callable[[torch.Tensor], torch.Tensor],
  batch: torch_model.Batch,
  config: LossConfig,
) -> Terms:
  """The terms of `train.losses.losses`, and their weighted sum as "loss"."""
  reference = batch["masks_BGIJ"].float()
  side = reference.shape[-1]
  within = _inside(batch["extent_B2"], batch["pixels_BIJC"].shape[1], side)
  rest = reference, within[:, None].expand_as(reference), batch["valid_BG"]

  def resized(mask: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(mask, (side, side), mode="bilinear")

  def weighted(terms: Terms) -> torch.Tensor:
    return (
      config.dice * terms["dice"]
      + config.bce * terms["bce"]
      + config.boundary * terms["boundary"]
    )

  *earlier, last = map(resized, prediction.masks)
  terms = mask_terms(last, *rest)
  terms["text"] = text_loss(head(prediction.states), batch["labels_BT"])
  total = config.text * terms["text"] + weighted(terms)
  if config.quality:
    terms["quality"] = quality_loss(prediction.quality, last, *rest)
    total = total + config.quality * terms["quality"]
  if config.deep_supervision and earlier:
    before = [weighted(mask_terms(mask, *rest)) for mask in earlier]
    terms["earlier"] = config.deep_supervision * torch.stack(before).sum()
    total = total + terms["earlier"]
  return terms | {"loss": total}


def text_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
  """Mean cross-entropy of the labelled tokens."""
  return functional.cross_entropy(
    logits.float().flatten(0, 1),
    labels.long().flatten(),
    ignore_index=torch_model.IGNORE_LABEL,
  )


def mask_terms(
  logits: torch.Tensor,
  reference: torch.Tensor,
  inside: torch.Tensor,
  valid: torch.Tensor,
) -> Terms:
  """Dice, BCE and boundary loss, each averaged over its masks."""
  soft = torch.sigmoid(logits)

  def total(values: torch.Tensor) -> torch.Tensor:
    return (values * inside).sum((-2, -1))

  pixels = inside.sum((-2, -1)).clamp(min=1)
  overlap = 2 * total(soft * reference) / 1000
  size = total(soft + reference) / 1000
  # PyTorch, too, holds logarithms above -100 here.
  edges = functional.binary_cross_entropy(
    _edges(soft, inside), _edges(reference, inside), reduction="none"
  )
  bce = functional.binary_cross_entropy_with_logits(
    logits, reference, reduction="none"
  )
  shown = valid & (total(reference) > 0)
  found = {
    "dice": (1 - (overlap + 1e-6) / (size + 1e-6), shown),
    "bce": (total(bce) / pixels, valid),
    "boundary": (total(edges) / pixels, valid),
  }
  return {
    name: (term * counted).sum() / (counted.sum() + 1e-8)
    for name, (term, counted) in found.items()
  }


def quality_loss(
  quality: torch.Tensor,
  logits: torch.Tensor,
  reference: torch.Tensor,
  inside: torch.Tensor,
  valid: torch.Tensor,
) -> torch.Tensor:
  """Mean squared error of the decoder's estimate of the IoU."""
  mask, true = (logits > 0) & inside, (reference > 0.5) & inside
  overlap = (mask & true).sum((-2, -1))
  union = (mask | true).sum((-2, -1)).clamp(min=1)
  error = quality - overlap / union
  return (error**2 * valid).sum() / (valid.sum() + 1e-8)


def release_trains(model: torch_model.RCMed) -> None:
  """Freezes what the release froze: LLaMA's own layers and final norm."""
  model.requires_grad_(True)
  model.llama.model.layers.requires_grad_(False)
  model.llama.model.norm.requires_grad_(False)
  for module in model.llama.model.layers.modules():
    if isinstance(module, torch_model.Lora):
      module.down.requires_grad_(True)
      module.up.requires_grad_(True)
  model.sam.shared_image_embedding.requires_grad_(False)
  model.sam.prompt_encoder.shared_embedding.requires_grad_(False)


def tensors(batch: dict[str, Any], device: str = "cpu") -> torch_model.Batch:
  """A batch of NumPy's as tensors."""
  return {
    name: torch.as_tensor(array).to(device, non_blocking=True)
    for name, array in batch.items()
  }


def _inside(extent: torch.Tensor, image: int, side: int) -> torch.Tensor:
  """bool[B, side, side]: pixels whose centre is not padding."""
  places = torch.arange(side, device=extent.device)
  centres = (places + 0.5) * (image / side)
  rows, columns = (centres < extent[:, axis, None] for axis in range(2))
  return rows[:, :, None] & columns[:, None]


def _edges(values: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
  """3x3 maximum minus 3x3 minimum; 0 outside."""
  highest = functional.max_pool2d(values.masked_fill(~inside, 0), 3, 1, 1)
  lowest = -functional.max_pool2d(-values.masked_fill(~inside, 1), 3, 1, 1)
  return ((highest - lowest) * inside).clamp(0, 1)


def count(parameters: Sequence[torch.Tensor]) -> int:
  """Numbers in all of them."""
  return sum(parameter.numel() for parameter in parameters)
