"""The correlation loop: its steps, its directions, deep supervision.

  rcmed sweep --sweep=configs/sweeps/correlation.py:tiny \\
    --workdir=runs/correlation
  rcmed sweep --sweep=configs/sweeps/correlation.py \\
    --workdir=runs/correlation_7b \\
    --from=path/to/converted_weights \\
    --config.data.index=path/to/image2label_train.json \\
    --index=path/to/image2label_test.json

What for: whether it helps that words and pixels answer each other K times, and
which direction does it. The baseline K=0 is the release, which has no loop; the
cells that lack a part lack it of K=2.

Hardware: `:tiny`, 2 CPU cores and 4 GB, about 35 minutes for 21 runs of drawn
images, a toy model from nothing. The 7B: 8 accelerators of 80 GB, 2 hours for
each of 21 runs at the release's 86.2 images/s on 40, in turn or as an array
(--emit); not run here.
"""

LOOP = "model.correlation."
CELLS = {
  "K=0": {LOOP + "steps": 0},
  "K=1": {LOOP + "steps": 1},
  "K=2": {LOOP + "steps": 2},
  "K=3": {LOOP + "steps": 3},
  "K=2-no-vision-to-language": {
    LOOP + "steps": 2,
    LOOP + "vision_to_language": False,
  },
  "K=2-no-language-to-vision": {
    LOOP + "steps": 2,
    LOOP + "language_to_vision": False,
  },
  "K=2-no-deep-supervision": {
    LOOP + "steps": 2,
    LOOP + "deep_supervision": False,
  },
}


def get_sweep(arg=None):
  """arg: None, or "tiny"."""
  if arg not in (None, "tiny"):
    raise ValueError(
      f"configs/sweeps/correlation.py:{arg} is unknown; use :tiny or nothing."
    )
  return _tiny() if arg == "tiny" else _full()


def _tiny():
  return dict(
    config="configs/demo.py",
    phantoms=dict(images=1800, held_out=540, size=96, modalities=("ct", "x")),
    every={
      LOOP + "deep_supervision": True,
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
      LOOP + "deep_supervision": True,
      "train.steps": 2000,
      "train.batch_size": 64,
      "train.accumulation": 4,
      "train.checkpoint_every": 200,
      "eval.controls": (),
    },
    cells=CELLS,
  )
