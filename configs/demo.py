"""The demo: a toy model on drawn images of nine modalities.

  rcmed demo                            (or `make demo`)
  rcmed demo --config=configs/demo.py:tiny

Hardware: 2 CPU cores, 6 GB of memory, at most 15 minutes; `:tiny` half a
minute, for tests, and learns nothing. Expected: see README.
Every organ of the full model is here, only smaller.
"""

from ml_collections import ConfigDict


def get_config(arg=None):
  """arg: None, or "tiny"."""
  if arg not in (None, "tiny"):
    raise ValueError(f"configs/demo.py:{arg} is unknown; use :tiny or nothing.")
  tiny = arg == "tiny"
  config = ConfigDict()

  config.data = dict(
    index="",  # the demo draws its own images
    vocabulary=640 if tiny else 1024,
    prompt_weights=(0.35, 0.5, 0.15),
    describe=tiny,  # descriptions would cost half of the time
    negative_share=0.5,
    single_share=0.8,  # one class at a time teaches what a name looks like
    noise_share=0.04,
    claim_share=0.5,  # masks learn to stay empty where the text is wrong
    shuffle_classes=True,
    max_targets=6,
    masks_per_row=2,
    lengths=(128, 208) if tiny else (128,),
    mask_size=32,
    cache=True,
    threads=2,
    seed=0,
  )
  config.model = dict(
    image=dict(
      image_size=32 if tiny else 64,
      patch_size=4 if tiny else 8,
      width=32 if tiny else 128,
      depth=2 if tiny else 4,
      heads=4,
      mlp_ratio=2.0 if tiny else 4.0,
      window=4,
      global_blocks=(1,) if tiny else (1, 3),
    ),
    language=dict(
      vocabulary=0,  # that of the tokenizer
      width=32 if tiny else 96,
      depth=2 if tiny else 3,
      heads=4,
      hidden=64 if tiny else 256,
      attention="prefix",  # the image's states know what is asked
      local_heads=2,  # nothing is loaded: class names are found at once
    ),
    correlation=dict(steps=1 if tiny else 0, heads=4, deep_supervision=True),
    decoder=dict(width=32 if tiny else 64, depth=2, heads=4, hidden=128),
    dropout=0.0,  # too few steps to overfit
    remat="none",  # memory is no concern at this size
  )
  config.optimizer = dict(
    rule="muon",  # half of AdamW's steps
    learning_rate=2e-3,
    warmup_steps=2 if tiny else 50,
    schedule="cosine",
    b2=0.98,  # a short run: moments of the last 50 steps
    trainable="all",
  )
  config.train = dict(
    steps=6 if tiny else 1700,
    batch_size=4 if tiny else 16,
    log_every=2 if tiny else 25,
    checkpoint_every=3 if tiny else 850,
    seed=0,
    # One word in 17 of an answer tells whether the target is there.
    loss=dict(text=3.0, quality=1.0),
  )
  config.mesh = dict(data=1)
  config.eval = dict(
    rows=8 if tiny else 32,
    max_new=24 if tiny else 96,
    classes_per_question=1,
    present_quality=0.3,
    bootstrap=100 if tiny else 1000,
    control_limit=8 if tiny else 90,
  )
  return config
