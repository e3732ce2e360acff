"""The model in PyTorch that ours is measured against is the same model."""

import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch):
  """Imports a module of benchmarks/, whose files find each other by name."""
  pytest.importorskip("torch", reason="see `make reference`")
  pytest.importorskip("transformers", reason="see `make reference`")
  monkeypatch.syspath_prepend(ROOT / "benchmarks")
  return importlib.import_module


def test_as_many_numbers_are_there_and_train_as_in_the_release(benchmark):
  torch = benchmark("torch")
  model = benchmark("torch_model")
  given = benchmark("gpu_cases").sizes(toy=False)
  with torch.device("meta"):
    theirs = model.RCMed(given.model)
  benchmark("torch_train").release_trains(theirs)
  counts = [
    sum(p.numel() for p in theirs.parameters() if p.requires_grad in which)
    for which in ((True, False), (True,))
  ]
  # transformers counts SAM's 2 x 128 frequencies, too, which never train.
  assert counts == [7_454_029_360 + 256, 977_757_744]


@pytest.mark.heavy  # compiles a gradient of every organ
def test_losses_and_gradients_are_ours(benchmark):
  step = benchmark("step_vs_torch")
  case = step.CASES["the tests' toy"]()
  ours, theirs = step.Ours(case), step.Theirs(case)
  theirs.load(ours.weights())
  losses, gradients = step.compare(ours, theirs)
  assert losses < step.TOLERANCES[0] and gradients < step.TOLERANCES[1]
  # It can fail: what the loop's words begin with is a tenth more.
  with benchmark("torch").no_grad():
    theirs.model.words.weight *= 1.1
  _, gradients = step.compare(ours, theirs)
  assert gradients > 3 * step.TOLERANCES[1]
