"""Fine-tune on your own images, given as an index with masks.

  rcmed train --config=configs/finetune.py:tiny --workdir=runs/mine \\
    --config.data.index=path/to/image2label_mine.json \\
    --config.data.validation=path/to/image2label_held_out.json

The held-out set may be left out; with it, the step that does best on it is
kept (`rcmed evaluate --best`), and training ends where nothing gets better.

Hardware: `:tiny` 2 CPU cores and 3 GB, a toy model from scratch that learns
some ten images by heart within 15 minutes (a check of the whole path on real
pixels). Without it: the 7B model with low-rank updates, as the release trains
it, started `--from` converted weights, on 64 accelerators of 80 GB or 64 or
more chips of 16 GB; see `rcmed plan --config=configs/finetune.py
--topology=h100:64`. For fewer, lower train.batch_size, and mesh.fsdp below 8.
"""

from ml_collections import ConfigDict


def get_config(arg=None):
  """arg: None, or "tiny"."""
  if arg not in (None, "tiny"):
    raise ValueError(
      f"configs/finetune.py:{arg} is unknown; use :tiny or nothing."
    )
  return _tiny() if arg == "tiny" else _full()


def _tiny():
  config = ConfigDict()
  config.data = dict(
    index="",  # yours
    validation="",  # yours, if some is held out
    vocabulary=640,
    prompt_weights=(0.0, 0.7, 0.3),
    max_targets=4,
    lengths=(128, 192),
    mask_size=128,
    cache=True,
    threads=2,
  )
  config.model = dict(
    image=dict(
      image_size=128,
      patch_size=8,
      width=96,
      depth=4,
      heads=4,
      window=8,
      global_blocks=(1, 3),
    ),
    language=dict(
      vocabulary=0,
      width=96,
      depth=2,
      heads=4,
      hidden=256,
      local_heads=2,  # nothing is loaded: class names are found at once
    ),
    decoder=dict(width=64, depth=2, heads=4, hidden=128),
    dropout=0.0,
    remat="none",
  )
  config.optimizer = dict(
    learning_rate=1e-3, warmup_steps=30, schedule="cosine", trainable="all"
  )
  config.train = dict(
    steps=600,
    batch_size=10,
    log_every=20,
    checkpoint_every=300,
    eval_every=60,
    keep_best=1,
    patience=4,
  )
  config.mesh = dict(data=1)
  config.eval = dict(rows=10, control_limit=10)
  return config


def _full():
  config = ConfigDict()
  config.data = dict(
    index="",  # yours
    validation="",  # yours, if some is held out
    tokenizer="",  # LLaMA's tokenizer.model
    lengths=(128, 256, 513),  # the release truncates at 513
    negative_share=0.2,
  )
  config.model = dict(
    lora=dict(rank=16, alpha=16.0, dropout=0.05),
    channel_order="bgr",  # as the released weights saw it
    dtype="bfloat16",
  )
  config.optimizer = dict(trainable="release")
  config.train = dict(
    steps=7730,
    batch_size=3072,  # the release's 3200 divides by no 64, 128 or 256
    accumulation=6,  # 8 images a device at a time on 64, 2 on 256
    eval_every=100,
    keep_best=1,
    patience=10,
  )
  # Not -1: where a width does not divide by the devices, as 4096 by 40, every
  # device would hold the whole model.
  config.mesh = dict(data=-1, fsdp=8)
  config.eval = dict(rows=8)
  return config
