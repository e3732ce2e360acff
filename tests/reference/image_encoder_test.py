"""The image encoder against transformers' SAM."""

import jax
import numpy as np
import parts


def test_tokens_and_pixels_are_sam_s(pair, torch):
  rng = np.random.default_rng(0)
  pixels_BIJC = rng.normal(size=(2, 96, 96, 3)).astype(np.float32)
  tokens_BYXD, pixels_BYXC = jax.jit(lambda encoder, x: encoder(x))(
    pair.ours.image_encoder, pixels_BIJC
  )
  with torch.inference_mode():
    theirs = pair.sam.vision_encoder(
      torch.from_numpy(pixels_BIJC.transpose(0, 3, 1, 2)),
      output_hidden_states=True,
    )
  features = theirs.last_hidden_state.permute(0, 2, 3, 1).numpy()
  assert parts.relative_error(tokens_BYXD, theirs.hidden_states[-1].numpy()) < (
    1e-4
  )
  assert parts.relative_error(pixels_BYXC, features) < 1e-4
