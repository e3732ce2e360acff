"""`rcmed plan`, on slices that are not here and GPUs that need no compiler."""

import json

import jax
import pytest

from rcmed_jax.apps import plan, plan_report, plan_search, plan_steps, settings
from rcmed_jax.parallel import chips
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import plan as plans
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train import step as steps

TINY = "--config=configs/pretrain_7b.py:tiny"
FULL = "--config=configs/pretrain_7b.py"


def _report(capsys, *argv):
  code = plan.main([*argv, "--json"])
  return code, json.loads(capsys.readouterr().out)


def test_gpus_are_counted_without_a_compiler(capsys):
  code, found = _report(capsys, FULL, "--topology=h100:64", "--price=2")
  assert code == 0
  assert found["fits"]
  assert found["plan"] is None
  assert found["compiler"] == "none: estimated"
  assert found["mesh"] == {"slice": 1, "data": 4, "fsdp": 16, "tensor": 1}
  # 64 GPUs of 989 TFLOP/s at 40% of it, 88.3 TFLOP an image.
  assert found["images_per_s"] == pytest.approx(
    64 * 989e12 * 0.4 / 88.3e12, rel=0.01
  )
  assert found["usd_per_million"] == pytest.approx(
    1e6 / found["images_per_s"] / 3600 * 64 * 2
  )


def test_what_does_not_fit_ends_with_its_own_code(capsys):
  code, found = _report(capsys, FULL, "--topology=h100:16", "--mesh=data=-1")
  assert code == plan.TOO_LARGE
  assert not found["fits"]
  # Weights held whole: 6.48 billion frozen ones in bfloat16, 0.98 billion
  # trained ones and their two moments in float32.
  # And 3072 / 16 images of 3 MB with eight masks of 64 KB.
  held = 2 * 6.476e9 + 3 * 4 * 0.9778e9 + 192 * (3 * 2**20 + 8 * 2**16)
  assert found["estimate"]["held"] == pytest.approx(held, rel=0.02)


def test_bytes_of_a_device_are_those_of_a_real_state():
  told = settings.parse([TINY, "--config.mesh.data=2", "--config.mesh.fsdp=4"])
  where = plan_steps.place("h100:8")
  step = plan_steps.make(told, where.mesh(told.mesh), "train")
  optimizer = optimizers.make_optimizer(told.optimizer, told.train.steps)
  model = plan_steps.with_vocabulary(told).model
  layout = steps.make_layout(
    model, told.optimizer, optimizer, meshes.make_mesh(told.mesh)
  )
  state = steps.init_state(layout, model, told.optimizer, optimizer, 0)
  for kind, tree in (
    ("trained weights", state.trainable),
    ("frozen weights", state.frozen),
    ("moments", state.moments),
  ):
    held = sum(
      leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
    )
    assert plans.shard_bytes(step.held[kind]) == held


def test_a_search_ranks_by_what_fits_and_speed(capsys):
  code, found = _report(capsys, TINY, "--topology=a100:2", "--search")
  assert code == 0
  assert len(found) > 4
  rates = [one["report"]["images_per_s"] for one in found]
  assert rates == sorted(rates, reverse=True)
  assert len({tuple(one["settings"]) for one in found}) == len(found)
  # Its flags ask for what it reports.
  best = found[0]
  _, again = _report(capsys, TINY, "--topology=a100:2", *best["settings"])
  assert again == best["report"]


@pytest.mark.parametrize("name", ["h100", "h100:0", "v5e:3x5", "b17:8"])
def test_an_unknown_topology_names_the_known_ones(name):
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  with pytest.raises(ValueError, match=name):
    plan.main([TINY, f"--topology={name}"])
  if not name.startswith("h100"):
    with pytest.raises(ValueError, match=r"v5e:2x2.*h100:64"):
      plan.main([TINY, f"--topology={name}"])


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--utilisation=1.5"], r"--utilisation=1.5 must be"),
    (["--mesh=fsdp=3"], r"but there are 8"),
    (["--mesh=fdsp=8"], r"expected sizes of slice, data, fsdp, tensor"),
  ],
)
def test_bad_flags_say_what_is_wrong(argv, message):
  with pytest.raises(ValueError, match=message):
    plan.main([TINY, "--topology=h100:8", *argv])


@pytest.mark.heavy
@pytest.mark.parametrize("name", plan_steps.STEPS)
def test_every_step_compiles_for_a_small_slice(name, tmp_path, capsys):
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  text = tmp_path / "program.txt"
  code, found = _report(
    capsys,
    TINY,
    "--topology=v5e:2x4",
    "--mesh=fsdp=4,tensor=2",
    f"--step={name}",
    f"--program={text}",
  )
  assert code == 0
  assert text.read_text(encoding="utf-8").startswith("HloModule")
  compiled = found["plan"]
  # What the compiler lays out is what was counted, filled up to tiles.
  assert compiled["arguments"] >= sum(compiled["held"].values())
  kinds = {one["kind"] for one in compiled["collectives"]}
  assert {"all-gather", "all-reduce"} <= kinds
  assert bool(compiled["loops"]) == (name == "evaluate")


@pytest.mark.heavy
def test_what_the_compiler_refuses_is_told(capsys):
  """Scores of eight whole images at once, on a chip of 16 GiB."""
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  code = plan.main(
    [
      TINY,
      "--topology=v5e:2x2",
      "--step=prefill",
      "--config.model.image.image_size=512",
      "--config.model.image.attention=reference",
      "--config.eval.rows=8",
    ]
  )
  out = capsys.readouterr().out
  assert code == plan.TOO_LARGE
  assert "DOES NOT FIT" in out
  assert "RESOURCE_EXHAUSTED" in out


def test_the_table_shows_what_a_search_needs_to_know():
  where = plan_steps.place("h200:8")
  told = settings.parse([TINY])
  report, text = plan_report.report(told, where, "decode", utilisation=0.5)
  assert text == ""
  table = plan_report.table(report)
  assert "decode step on h200:8" in table
  assert "tokens/s" in table
  found = plan_search.table([plan_search.Choice(("--a=1",), report)])
  assert "--a=1" in found


def test_every_chip_has_a_name_of_its_own():
  assert not set(chips.TPUS) & set(chips.GPUS)
