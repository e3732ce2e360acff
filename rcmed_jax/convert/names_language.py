"""Names of the language model and of the three projections, theirs and ours.

LoRA's arrays have no entry: the release's weights come with them merged.
"""

from rcmed_jax.convert.entry import TRANSPOSE, Entry
from rcmed_jax.model.config import ModelConfig

# Within one layer: the release's module and ours.
LAYER_KERNELS = {
  "self_attn.q_proj": "q",
  "self_attn.k_proj": "k",
  "self_attn.v_proj": "v",
  "self_attn.o_proj": "o",
  "mlp.gate_proj": "gate",
  "mlp.up_proj": "up",
  "mlp.down_proj": "down",
}
LAYER_NORMS = {
  "input_layernorm": "attention_norm",
  "post_attention_layernorm": "mlp_norm",
}
# Linear layers 0 and 2 of the release's sequences.
PROJECTIONS = {
  "mm_projector": "projector",
  "t2i_projection.0": "feedback",
  "text_hidden_fcs.0": "query",
}


def entries(config: ModelConfig) -> list[Entry]:
  """Every tensor of the release outside SAM."""
  found = [
    Entry("model.embed_tokens.weight", "language.embedding"),
    Entry("model.norm.weight", "language.norm.scale"),
    Entry("lm_head.weight", "language.head.kernel", transform=TRANSPOSE),
  ]
  for layer in range(config.language.depth):
    release, index = f"model.layers.{layer}", (layer,)
    for theirs, ours in LAYER_KERNELS.items():
      path = f"language.layers.{ours}.kernel"
      found.append(Entry(f"{release}.{theirs}.weight", path, index, TRANSPOSE))
    for theirs, ours in LAYER_NORMS.items():
      path = f"language.layers.{ours}.scale"
      found.append(Entry(f"{release}.{theirs}.weight", path, index))
  for theirs, ours in PROJECTIONS.items():
    for place, linear in (("0", "inner"), ("2", "outer")):
      release, path = f"model.{theirs}.{place}", f"{ours}.{linear}"
      found += [
        Entry(f"{release}.weight", f"{path}.kernel", transform=TRANSPOSE),
        Entry(f"{release}.bias", f"{path}.bias"),
      ]
  return found
