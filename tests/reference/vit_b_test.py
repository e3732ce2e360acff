"""SAM's ViT-B at its real size against transformers', picture to mask."""

import jax
import numpy as np
import parts
import pytest
import torch_files

from rcmed_jax.convert import fit, names, names_vision, torch_io
from rcmed_jax.model import config as configs

CONFIG = configs.ModelConfig(
  image=configs.ImageEncoderConfig(
    width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)
  ),
  language=configs.LanguageConfig(
    vocabulary=71, width=32, depth=1, heads=4, hidden=56
  ),
  remat="none",
)


@pytest.mark.heavy  # 1.1 trillion operations each, and compiling them
def test_pixels_and_masks_of_vit_b_are_sam_s(load_sam, torch):
  noise = torch_files.tensors(CONFIG, "sam")
  entries = names.entries(CONFIG, "sam")
  arrays = fit.to_ours(entries, fit.shapes(CONFIG), noise)
  model = torch_io.build(
    CONFIG, torch_io.nested({a.name: np.asarray(a) for a in arrays})
  )
  theirs = load_sam(
    CONFIG,
    {
      names_vision.PREFIX + name: torch.from_numpy(values)
      for name, values in noise.items()
    },
  )
  rng = np.random.default_rng(0)
  pixels_BIJC = rng.normal(size=(1, 1024, 1024, 3)).astype(np.float32)
  query_BGC = rng.normal(size=(1, 1, 256)).astype(np.float32)

  @jax.jit
  def run(encoder, decoder, pixels_BIJC, query_BGC):
    _, pixels_BYXC = encoder(pixels_BIJC)
    masks_BGIJ, quality_BG = decoder(pixels_BYXC, query_BGC)
    return pixels_BYXC, masks_BGIJ, quality_BG

  pixels_BYXC, masks_BGIJ, quality_BG = run(
    model.image_encoder, model.mask_decoder, pixels_BIJC, query_BGC
  )
  with torch.inference_mode():
    features = theirs.get_image_embeddings(
      torch.from_numpy(pixels_BIJC.transpose(0, 3, 1, 2))
    )
    no_mask = theirs.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    masks, quality = theirs.mask_decoder(
      image_embeddings=features,
      image_positional_embeddings=theirs.get_image_wide_positional_embeddings(),
      sparse_prompt_embeddings=torch.from_numpy(query_BGC[:, :, None]),
      dense_prompt_embeddings=no_mask.expand(1, -1, 64, 64),
      multimask_output=False,
    )
  assert (
    parts.relative_error(pixels_BYXC, features.permute(0, 2, 3, 1).numpy())
    < 1e-4
  )
  assert parts.relative_error(masks_BGIJ, masks[:, :, 0].numpy()) < 1e-4
  assert parts.relative_error(quality_BG, quality[:, :, 0].numpy()) < 1e-4
