"""The mix of questions, and how many ask for what is not there.

  rcmed sweep --sweep=configs/sweeps/prompts.py:tiny \\
    --workdir=runs/prompts
  rcmed sweep --sweep=configs/sweeps/prompts.py \\
    --workdir=runs/prompts_7b \\
    --from=path/to/converted_weights \\
    --config.data.index=path/to/image2label_train.json \\
    --index=path/to/image2label_test.json

What for: how much to train on open questions and how much on questions by name,
and what share of absent classes teaches to reject them. The three weights are
of: describe the image; all its targets by name; some of them by name.

Hardware: `:tiny`, 2 CPU cores and 4 GB, about 20 minutes for 15 runs of drawn
images, a toy model from nothing. The 7B: 8 accelerators of 80 GB, 2 hours for
each of 15 runs at the release's 86.2 images/s on 40, in turn or as an array
(--emit); not run here.
"""

CELLS = {
  "mixed": {},
  "mostly-open": {"data.prompt_weights": (0.8, 0.1, 0.1)},
  "mostly-named": {"data.prompt_weights": (0.1, 0.6, 0.3)},
  "no-negatives": {"data.negative_share": 0.0},
  "half-negatives": {"data.negative_share": 0.5},
}


def get_sweep(arg=None):
  """arg: None, or "tiny"."""
  if arg not in (None, "tiny"):
    raise ValueError(
      f"configs/sweeps/prompts.py:{arg} is unknown; use :tiny or nothing."
    )
  return _tiny() if arg == "tiny" else _full()


def _tiny():
  return dict(
    config="configs/demo.py",
    phantoms=dict(images=1800, held_out=540, size=96, modalities=("ct", "x")),
    every={
      "data.prompt_weights": (0.4, 0.4, 0.2),
      "data.negative_share": 0.25,
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
      "data.prompt_weights": (0.4, 0.4, 0.2),
      "data.negative_share": 0.25,
      "train.steps": 2000,
      "train.batch_size": 64,
      "train.accumulation": 4,
      "train.checkpoint_every": 200,
      "eval.controls": (),
    },
    cells=CELLS,
  )
