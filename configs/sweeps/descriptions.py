"""Descriptions in the training text: without, with.

  rcmed sweep --sweep=configs/sweeps/descriptions.py:tiny \\
    --workdir=runs/descriptions
  rcmed sweep --sweep=configs/sweeps/descriptions.py \\
    --workdir=runs/descriptions_7b \\
    --from=path/to/converted_weights \\
    --config.data.index=path/to/image2label_train.json \\
    --config.data.descriptions=path/to/descriptions_train.json \\
    --index=path/to/image2label_test.json

What for: whether masks and recognition gain from learning to describe. The
baseline goes without.

Hardware: `:tiny`, 2 CPU cores and 4 GB, about 15 minutes for 6 runs of drawn
images, a toy model from nothing. The 7B: 8 accelerators of 80 GB, 2 hours for
each of 6 runs at the release's 86.2 images/s on 40, in turn or as an array
(--emit); not run here.
"""

CELLS = {
  "without": {"data.describe": False},
  "with": {"data.describe": True},
}


def get_sweep(arg=None):
  """arg: None, or "tiny"."""
  if arg not in (None, "tiny"):
    raise ValueError(
      f"configs/sweeps/descriptions.py:{arg} is unknown; use :tiny or nothing."
    )
  return _tiny() if arg == "tiny" else _full()


def _tiny():
  return dict(
    config="configs/demo.py",
    phantoms=dict(images=1800, held_out=540, size=96, modalities=("ct", "x")),
    every={
      "data.lengths": (128, 208),  # descriptions are long
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
