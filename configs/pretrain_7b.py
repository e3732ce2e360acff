"""Train the 7B model on the whole public training set, as the release did.

  rcmed train --config=configs/pretrain_7b.py --workdir=runs/7b \\
    --from=path/to/converted_weights \\
    --config.data.index=path/to/image2label_train.json

Hardware: made for 256 chips of TPU v5e or v6e, or 64 accelerators of 80 GB,
one process a host. Time: the release ran 8 epochs of 3,091,443 images at 86.2
images/s on 40 Hopper GPUs, which is 80 hours; a pass over one image is about
88 TFLOP, so that 256 chips of 197 TFLOP/s at 40% of their peak would take 30
hours. Nothing of this size was run here. Expected score: the release's test
Dice is 0.862 with reference answers forced. That training began from loaded
weights, without which its frozen language model makes no sense: `--from`.
`:tiny` is the same settings with every organ at its smallest, for planners and
tests on 8 devices; it learns nothing.
"""

from ml_collections import ConfigDict

IMAGES = 3_091_443  # in the training split
EPOCHS = 8


def get_config(arg=None):
  """arg: None, or "tiny"."""
  if arg not in (None, "tiny"):
    raise ValueError(
      f"configs/pretrain_7b.py:{arg} is unknown; use :tiny or nothing."
    )
  tiny = arg == "tiny"
  batch_size = 16 if tiny else 3072  # the release's 3200 fits no 256 chips
  config = ConfigDict()
  config.data = dict(
    index="",  # the public index
    validation="",  # the public validation index
    tokenizer="",  # that of --from; `:tiny` trains its own
    vocabulary=640,
    # The release truncates at 513; the placeholder is one of them.
    lengths=(128, 208) if tiny else (128, 256, 513),
    mask_size=32 if tiny else 256,
  )
  config.model = dict(
    lora=dict(rank=2 if tiny else 16, alpha=16.0, dropout=0.05),
    dtype="bfloat16",
    remat="full",  # a layer's input alone: 16 GB a chip
    **(_tiny_sizes() if tiny else {}),
  )
  config.optimizer = dict(
    trainable="release",
    learning_rate=1e-4,
    warmup_steps=2 if tiny else 100,
    frozen_dtype="bfloat16",
    # With 32 GB a chip or more, "replicated" saves gathering 13 GB each pass.
    frozen_placement="sharded",
    reduce_dtype="float32",
  )
  config.train = dict(
    steps=6 if tiny else EPOCHS * IMAGES // batch_size,
    batch_size=batch_size,
    accumulation=2 if tiny else 6,  # 2 images at a time on 256 chips, 8 on 64
    log_every=2 if tiny else 10,
    checkpoint_every=3 if tiny else 200,
    eval_every=3 if tiny else 400,
    keep_best=1,  # by its losses; `rcmed evaluate` gives scores
  )
  # Weights in 16 parts: in more, the TPU compiler gives up scattering sums of
  # gradients and has every chip hold them whole (docs/scaling.md).
  config.mesh = dict(data=1, fsdp=-1) if tiny else dict(data=-1, fsdp=16)
  config.eval = dict(rows=1)
  return config


def _tiny_sizes():
  return dict(
    image=dict(
      image_size=32,
      patch_size=4,
      width=32,
      depth=2,
      heads=4,
      mlp_ratio=2.0,
      window=4,
      global_blocks=(1,),
    ),
    language=dict(vocabulary=0, width=32, depth=2, heads=4, hidden=64),
    decoder=dict(width=32, depth=2, heads=4, hidden=128),
  )
