"""What a launch file starts: runs that are new, and weights to begin from."""

import pytest

from rcmed_jax import cli
from rcmed_jax.apps import runs, settings
from rcmed_jax.data import phantoms


@pytest.fixture(scope="module")
def told(tmp_path_factory):
  data = tmp_path_factory.mktemp("data")
  phantoms.write(data, 9, seed=0)
  index = f"--config.data.index={data / 'image2label_train.json'}"
  return settings.parse(["--config=configs/demo.py:tiny", index])


def test_never_goes_on_with_what_the_same_launch_began(
  told, tmp_path, monkeypatch
):
  """As a cluster does, that starts the same command after each restart."""
  monkeypatch.setenv(runs.LAUNCHED_AS, "first")
  runs.start(told, tmp_path, resume="never")
  runs.start(told, tmp_path, resume="never")
  for other in ("second", ""):
    monkeypatch.setenv(runs.LAUNCHED_AS, other)
    with pytest.raises(ValueError, match="holds a run; give another"):
      runs.start(told, tmp_path, resume="never")
  # Going on takes nothing over.
  monkeypatch.setenv(runs.LAUNCHED_AS, "second")
  runs.start(told, tmp_path)
  with pytest.raises(ValueError, match="holds a run; give another"):
    runs.start(told, tmp_path, resume="never")


def test_a_run_that_nobody_launched_is_of_no_launch(
  told, tmp_path, monkeypatch
):
  monkeypatch.delenv(runs.LAUNCHED_AS, raising=False)
  runs.start(told, tmp_path)
  assert not (tmp_path / runs.LAUNCH).exists()
  with pytest.raises(ValueError, match="holds a run; give another"):
    runs.start(told, tmp_path, resume="never")


def _train(workdir, *more):
  return cli.main(
    ["train", "--config=configs/finetune.py", f"--workdir={workdir}", *more]
  )


@pytest.mark.parametrize("trainable", ["release", "lora"])
def test_frozen_language_model_of_noise_is_refused(trainable, tmp_path, capsys):
  told = f"--config.optimizer.trainable={trainable}"
  assert _train(tmp_path / "run", told) == cli.BAD_INPUT
  said = capsys.readouterr().err
  assert "6.5 billion weights" in said
  assert "give --from" in said and "--from-random" in said
  assert not (tmp_path / "run").exists()


def test_what_is_not_frozen_begun_or_meant_is_not_refused(tmp_path, capsys):
  """All of these come as far as the index, which is not there."""
  begun = tmp_path / "begun"
  begun.mkdir()
  settings.save(settings.parse(["--config=configs/finetune.py"]), begun)
  for workdir, more in (
    (begun, ()),
    (tmp_path / "new", ("--from-random",)),
    (tmp_path / "all", ("--config.optimizer.trainable=all",)),
    (tmp_path / "small", ("--config.model.language.depth=0",)),
  ):
    assert _train(workdir, *more) == cli.BAD_INPUT
    assert "config.data.index is empty" in capsys.readouterr().err
