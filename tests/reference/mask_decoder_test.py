"""The mask decoder against transformers' SAM, one target at a time."""

import jax
import numpy as np
import parts


def test_masks_and_quality_are_sam_s(pair, torch):
  rng = np.random.default_rng(0)
  pixels_BYXC = rng.normal(size=(2, 12, 12, 32)).astype(np.float32)
  query_BGC = rng.normal(size=(2, 3, 32)).astype(np.float32)
  decode = jax.jit(lambda decoder, *given: decoder.all_masks(*given))
  masks_BGQIJ, quality_BGQ = decode(
    pair.ours.mask_decoder, pixels_BYXC, query_BGC
  )
  with torch.inference_mode():
    no_mask = pair.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    # Without the single mask; it is asked for by itself below.
    three, quality = _theirs(
      torch, pair.sam, pixels_BYXC, query_BGC, no_mask, True
    )
    one, first = _theirs(
      torch, pair.sam, pixels_BYXC, query_BGC, no_mask, False
    )
  theirs_BGQIJ = np.concatenate([one, three], axis=2)
  theirs_BGQ = np.concatenate([first, quality], axis=2)
  assert parts.relative_error(masks_BGQIJ, theirs_BGQIJ) < 1e-4
  assert parts.relative_error(quality_BGQ, theirs_BGQ) < 1e-4


def _theirs(torch, sam, pixels_BYXC, query_BGC, no_mask, multimask):
  batch = len(pixels_BYXC)
  positions = sam.get_image_wide_positional_embeddings()
  masks, quality = sam.mask_decoder(
    image_embeddings=torch.from_numpy(pixels_BYXC.transpose(0, 3, 1, 2)),
    image_positional_embeddings=positions.repeat(batch, 1, 1, 1),
    sparse_prompt_embeddings=torch.from_numpy(query_BGC[:, :, None]),
    dense_prompt_embeddings=no_mask.expand(batch, -1, 12, 12),
    multimask_output=multimask,
  )
  return masks.numpy(), quality.numpy()
