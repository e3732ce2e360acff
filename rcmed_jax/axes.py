"""The letters of array axes and the names of logical axes, for the whole house.

An array of known rank carries one capital letter per axis after its last
underscore: `tokens_BT` is [batch, text tokens]. Einsum strings use the same
letters. Digits stand for a literal size (`extent_B2` is [batch, 2]).

  B  batch                        T  text tokens
  S  attended tokens              N  attention heads
  H  head width                   D  model width (of the module at hand)
  F  hidden width of an MLP       V  vocabulary
  W  window side                  P  patches or pixels in one row, P = Y * X
  Y  patch rows                   X  patch columns
  I  pixel rows                   J  pixel columns
  C  channels                     G  targets per image, one [SEG] each
  Q  tokens of the mask decoder   R  LoRA rank
  K  steps of the correlation loop
  L  layers stacked for a scan    M  windows or heads folded into the batch
  E  visual tokens, E = (Y / 2) * (X / 2)
  U  states of the grammar of answers

Parameters and activations carry *logical* axis names. `parallel/rules.py` maps
each of them to the mesh; a name that it does not know is an error there.
"""

# Activations; their heads, hidden widths and logits share the names below.
BATCH = "batch"
LENGTH = "length"  # positions of any kind: text tokens, patches, pixels
WIDTH = "width"  # features of one position

# Parameters. One name per role, so that one table decides every placement.
LAYERS = "layers"  # stacked by scan
STAGES = "stages"  # stacked groups of layers (image encoder)
EMBED = "embed"  # model width of whichever module
HEADS = "heads"  # heads times head width, the output of q, k, v
MLP = "mlp"  # hidden width of an MLP
VOCAB = "vocab"  # vocabulary
RANK = "rank"  # LoRA rank
CHANNELS = "channels"  # pixel width C and its fractions
SPACE = "space"  # kernel rows and columns, grid positions, table rows
TOKENS = "tokens"  # learned tokens of the mask decoder
VECTOR = "vector"  # biases, norm scales, scalars: never sharded

LOGICAL_AXES = (
  BATCH,
  LENGTH,
  WIDTH,
  LAYERS,
  STAGES,
  EMBED,
  HEADS,
  MLP,
  VOCAB,
  RANK,
  CHANNELS,
  SPACE,
  TOKENS,
  VECTOR,
)
