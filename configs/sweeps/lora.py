"""The rank of the language model's low-rank updates.

  rcmed sweep --sweep=configs/sweeps/lora.py:tiny \\
    --workdir=runs/lora
  rcmed sweep --sweep=configs/sweeps/lora.py \\
    --workdir=runs/lora_7b \\
    --from=path/to/converted_weights \\
    --config.data.index=path/to/image2label_train.json \\
    --index=path/to/image2label_test.json

What for: how far the language model's layers must move, their own weights being
frozen. alpha is the rank, so that the scale of the updates stays. The baseline
is rank 16, the release's, or none in the toy, whose frozen layers are random:
it shows that the sweep works, not what rank to take.

Hardware: `:tiny`, 2 CPU cores and 4 GB, about 15 minutes for 12 runs of drawn
images, a toy model from nothing. The 7B: 8 accelerators of 80 GB, 2 hours for
each of 12 runs at the release's 86.2 images/s on 40, in turn or as an array
(--emit); not run here.
"""


def get_sweep(arg=None):
  """arg: None, or "tiny"."""
  if arg not in (None, "tiny"):
    raise ValueError(
      f"configs/sweeps/lora.py:{arg} is unknown; use :tiny or nothing."
    )
  return _tiny() if arg == "tiny" else _full()


def _tiny():
  return dict(
    config="configs/demo.py",
    phantoms=dict(images=1800, held_out=540, size=96, modalities=("ct", "x")),
    every={
      "optimizer.trainable": "release",
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
    cells=_ranks(0, 2, 4, 8),
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
    cells=_ranks(0, 4, 16, 64),
    baseline="rank=16",
  )


def _ranks(*ranks):
  return {
    f"rank={rank}": {
      "model.lora.rank": rank,
      "model.lora.alpha": float(rank),
    }
    for rank in ranks
  }
