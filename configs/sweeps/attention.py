"""Attention of the language model: causal, or prefix.

  rcmed sweep --sweep=configs/sweeps/attention.py:tiny \\
    --workdir=runs/attention
  rcmed sweep --sweep=configs/sweeps/attention.py \\
    --workdir=runs/attention_7b \\
    --from=path/to/converted_weights \\
    --config.data.index=path/to/image2label_train.json \\
    --index=path/to/image2label_test.json

What for: whether image and question should see each other both ways (prefix),
so that the image's states know what is asked. The baseline, causal, is the
release.

Hardware: `:tiny`, 2 CPU cores and 4 GB, about 10 minutes for 6 runs of drawn
images, a toy model from nothing. The 7B: 8 accelerators of 80 GB, 2 hours for
each of 6 runs at the release's 86.2 images/s on 40, in turn or as an array
(--emit); not run here.
"""

CELLS = {
  "causal": {"model.language.attention": "causal"},
  "prefix": {"model.language.attention": "prefix"},
}


def get_sweep(arg=None):
  """arg: None, or "tiny"."""
  if arg not in (None, "tiny"):
    raise ValueError(
      f"configs/sweeps/attention.py:{arg} is unknown; use :tiny or nothing."
    )
  return _tiny() if arg == "tiny" else _full()


def _tiny():
  return dict(
    config="configs/demo.py",
    phantoms=dict(images=1800, held_out=540, size=96, modalities=("ct", "x")),
    every={
      # Half as deep as the demo's model, so that many runs fit into an hour.
      "model.image.depth": 2,
      "model.image.global_blocks": (1,),
      "model.language.depth": 2,
      "train.steps": 360,
      "train.checkpoint_every": 360,
      "train.log_every": 20,
      "optimizer.warmup_steps": 30,
      "eval.controls": (),
    },
    cells=CELLS,
  )


def _full():
  return dict(
    config="configs/finetune.py",
    every={
      "train.steps": 2000,
      "train.batch_size": 64,
      "train.accumulation": 4,
      "train.checkpoint_every": 200,
      "eval.controls": (),
    },
    cells=CELLS,
  )
