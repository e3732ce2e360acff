"""`rcmed plan`, on slices that are not here and GPUs that need no compiler."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from rcmed_jax.apps import (
  plan,
  plan_estimate,
  plan_report,
  plan_search,
  plan_steps,
  settings,
)
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


def _step(sizes, *flags, count=8, name="train"):
  told = settings.parse([TINY, *flags])
  mesh = meshes.abstract_mesh(meshes.parse(sizes), count)
  return told, plan_steps.make(told, mesh, name)


def test_what_is_sent_is_counted_leaf_by_leaf():
  told, step = _step("data=2,fsdp=4")  # bfloat16, 2 micro-batches

  def leaf(dtype, shape, *spec):
    sharding = NamedSharding(step.mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  step = dataclasses.replace(
    step,
    held={
      "trained weights": {
        "cut": leaf(jnp.float32, (8, 4), "fsdp"),  # parts of 32 bytes
        "whole": leaf(jnp.float32, (4,)),  # 16 bytes
      },
      "frozen weights": {
        "cut": leaf(jnp.bfloat16, (2, 8), None, ("fsdp",)),  # parts of 8
        "whole": leaf(jnp.bfloat16, (9,)),
      },
    },
  )
  found = plan_estimate.estimate(told, step, chips.TPUS["v5e"], utilisation=0.4)
  # Twice 3 parts of 16 and of 8 gathered, 3 of 32 scattered, and 16 bytes added
  # up over four chips.
  fsdp = 2 * 3 * (16 + 8) + 3 * 32 + 2 * 16 * 3 / 4
  # Gradients of 32 and 16 bytes added up over two copies.
  assert found.sent == {
    "slice": 0,
    "data": 2 * (32 + 16),
    "fsdp": 2 * fsdp,
    "tensor": 0,
  }


def test_weights_that_fsdp_does_not_divide_are_not_gathered():
  """No width of the tiny model divides by 5."""
  told, step = _step("fsdp=5", "--config.train.batch_size=20", count=5)
  trained = plans.shard_bytes(step.held["trained weights"])
  whole = 4 * sum(
    leaf.size for leaf in jax.tree.leaves(step.held["trained weights"])
  )
  assert trained == whole
  found = plan_estimate.estimate(
    told, step, chips.GPUS["h100"], utilisation=0.4
  )
  assert found.sent["fsdp"] == pytest.approx(2 * 2 * whole * 4 / 5)


def test_large_weights_that_stay_whole_are_a_warning(capsys):
  """4096 does not divide by 40; 1280, the encoder's width, does."""
  argv = [FULL, "--topology=h100:40", "--config.train.batch_size=3200"]
  argv += ["--config.train.accumulation=10", "--mesh=fsdp=40", "--json"]
  plan.main(argv)
  out, err = capsys.readouterr()
  whole = json.loads(out)["whole"]
  # 32 layers of bfloat16[4096, 11008].
  assert whole["language.layers.up.kernel"] == 32 * 4096 * 11008 * 2
  assert not any("image_encoder" in name for name in whole)
  assert "WARNING: every device holds" in err
  plan.main(argv[:-1])
  assert "WARNING: every device holds" in capsys.readouterr().out
  plan.main([FULL, "--topology=h100:64"])
  out, err = capsys.readouterr()
  assert "WARNING" not in out + err


def test_between_slices_an_estimate_takes_the_network():
  """Gradients' parts, once a micro-batch, at 3.1 GB/s and not 100."""
  told, step = _step("slice=2,fsdp=4")
  place = plan_steps.Place("v5e:2x2", 2, chips.TPUS["v5e"], 8)
  found = plan_report.assemble(
    plan_report.Question(told, place), step, None, ""
  )
  trained = plans.shard_bytes(step.held["trained weights"])
  assert found.network_s == pytest.approx(2 * trained / 3.1e9)
  assert found.links_s == pytest.approx(found.estimate.sent["fsdp"] / 100e9)


@pytest.mark.parametrize(
  ("gib", "fits", "words"),
  [
    (59, True, ["FRACTION=0.94", "60 GiB, enough"]),
    (75, True, ["fits: 75.00 GiB of the 75.2 GiB", "60 GiB, too little"]),
    (76, False, ["DOES NOT FIT: 76.00 GiB of the 75.2 GiB"]),
  ],
)
def test_a_gpu_gives_what_jax_takes_of_it(gib, fits, words):
  told, step = _step("fsdp=8")
  place = plan_steps.place("h100:8")
  found = plan_report.assemble(
    plan_report.Question(told, place), step, None, ""
  )
  found = dataclasses.replace(
    found,
    estimate=dataclasses.replace(
      found.estimate, held=gib * 2**30, gradients=0, activations=0, work=0
    ),
  )
  assert found.fits == fits
  table = plan_report.table(found)
  assert all(word in table for word in words)


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
  # The batch that was asked for stands before others that are as fast.
  asked, *_ = (one for one in found if one["report"]["images"] == 16)
  assert all(
    found.index(one) > found.index(asked)
    for one in found
    if one["report"]["images_per_s"] == asked["report"]["images_per_s"]
    and one["report"]["images"] != 16
  )


@pytest.fixture
def compiler(monkeypatch):
  """A compiler of v5e:2x4 that lets pass what `passes` says; what it got."""
  asked, real = [], plan_report.report
  found = types.SimpleNamespace(asked=asked, passes=lambda number: True)

  def report(question, *, compiles=True, step=None):
    counted, _ = real(question, compiles=False, step=step)
    if not compiles:
      return counted, ""
    asked.append(question)
    passes = found.passes(len(asked))
    compiled = plans.Plan(
      {}, 0, 0, 0, 0 if passes else 99 * 2**30, 0, (), (), (), 1, "", 1.0
    )
    return dataclasses.replace(counted, plan=compiled), ""

  monkeypatch.setattr(plan_report, "report", report)
  # Two layouts: each takes a second to lay out.
  monkeypatch.setattr(plan_search, "TENSOR", (8, 4))
  monkeypatch.setattr(plan_search, "FROZEN", ("sharded",))
  monkeypatch.setattr(
    plan_steps.Place,
    "mesh",
    lambda self, config: meshes.abstract_mesh(config, self.count),
  )
  return found


def _search(compiles, step="train", count=8):
  place = plan_steps.Place("v5e:2x4", 1, chips.TPUS["v5e"], count)
  told = settings.parse([TINY])
  return plan_search.search(
    plan_report.Question(told, place, step), compiles=compiles
  )


def test_a_search_compiles_until_enough_fit(compiler):
  compiler.passes = lambda number: number in (3, 5)
  found = _search(compiles=2)
  assert len(compiler.asked) == 5
  assert [one.compiled for one in found[:3]] == [True, True, False]
  assert all(one.fits for one in found[:-3])
  # Compiled ones that do not fit stand last, and the table has them all.
  assert [one.compiled and not one.fits for one in found[-3:]] == [True] * 3
  assert plan_search.table(found, most=5).count("\n*") == 5


def test_a_search_in_which_nothing_fits_says_so(compiler, monkeypatch):
  compiler.passes = lambda number: False
  monkeypatch.setattr(plan_search, "TENSOR", (8,))
  monkeypatch.setattr(plan_search, "ROWS", (1, 2))
  found = _search(compiles=1, step="prefill")
  assert len(found) == 2
  assert len(compiler.asked) == len(found)
  assert not found[0].fits


def test_a_search_tries_the_layouts_of_the_docs():
  place = plan_steps.Place("v5e:16x16", 1, chips.TPUS["v5e"], 256)
  tried = [mesh for mesh, _ in plan_search._layouts(place)]
  assert meshes.MeshConfig(1, 32, 1, 8) in tried  # to decode
  assert meshes.MeshConfig(1, 16, 16, 1) in tried  # to train
  assert meshes.MeshConfig(1, 256, 1, 1) in tried
  assert len(set(tried)) == 9 + 8 + 7 + 6  # divisors of 256, 128, 64, 32


def test_a_search_for_decoding_tries_several_rows(compiler):
  """On tensor=8 too, which does not divide the four heads of its cache."""
  flags = {one.settings for one in _search(0, "decode")}
  rows = {flag for one in flags for flag in one if "eval.rows" in flag}
  assert rows == {f"--config.eval.rows={n}" for n in (1, 2, 4, 8, 16)}


def test_a_search_is_bounded_and_says_what_it_leaves_out(compiler, monkeypatch):
  monkeypatch.setattr(plan_search, "MOST", 10)
  said = []
  place = plan_steps.Place("v5e:2x4", 1, chips.TPUS["v5e"], 8)
  asked = plan_report.Question(settings.parse([TINY]), place)
  total = len(list(plan_search._choices(asked)))
  found = plan_search.search(asked, compiles=0, say=said.append)
  assert len(found) == 10
  assert said[0].startswith(f"{total - 10} choices")
  assert {one.report.step.images for one in found} == {16}


def test_one_device_and_odd_numbers_can_be_searched(capsys):
  code, found = _report(capsys, TINY, "--topology=h100:1", "--search")
  assert code == 0
  assert {one["report"]["images"] for one in found} == {8, 16, 32}
  # 3 images at a time: batches of 9, 15 and 33 are next to 8, 16 and 32.
  code, found = _report(capsys, TINY, "--topology=h100:3", "--search")
  assert {9, 15, 33} <= {one["report"]["images"] for one in found}


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
    (["--slices=0"], r"--slices=0: expected 1 or more"),
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
def test_only_gradients_and_counts_leave_a_slice(capsys):
  """Two slices of four chips, weights in four parts in each."""
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  code, found = _report(
    capsys,
    TINY,
    "--topology=v5e:2x2",
    "--slices=2",
    "--mesh=slice=2,fsdp=4",
  )
  assert code == 0
  sums = found["plan"]["collectives"]
  abroad = [one for one in sums if "slice" in one["axes"]]
  assert {tuple(one["axes"]) for one in sums} == {("slice",), ("fsdp",)}
  assert {one["kind"] for one in abroad} == {"all-reduce"}
  # A sum over 2 sends what a chip has once: in each of 2 micro-batches the
  # gradient of its quarter of what is cut and of all that is not. Small ones
  # are cut further first, and filled up to tiles: 570 KB where 600 are counted.
  gradients = found["estimate"]["sent"]["slice"]
  sent = sum(one["sent"] for one in abroad)
  assert sent == pytest.approx(gradients, rel=0.2)
  assert found["network_s"] == pytest.approx(sent / 3.1e9)
  # Weights are gathered inside a slice.
  assert any(one["kind"] == "all-gather" for one in sums)


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
  report, text = plan_report.report(
    plan_report.Question(told, where, "decode", utilisation=0.5)
  )
  assert text == ""
  table = plan_report.table(report)
  assert "decode step on h200:8" in table
  assert "tokens/s" in table
  found = plan_search.table([plan_search.Choice(("--a=1",), report, 0.0)])
  assert "--a=1" in found


def test_every_chip_has_a_name_of_its_own():
  assert not set(chips.TPUS) & set(chips.GPUS)
