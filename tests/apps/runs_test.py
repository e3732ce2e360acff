import json

import numpy as np
import pytest

from rcmed_jax.apps import runs, settings
from rcmed_jax.data import phantoms


@pytest.fixture(scope="module")
def told(tmp_path_factory):
  data = tmp_path_factory.mktemp("data")
  phantoms.write(data, 9, seed=0)
  index = f"--config.data.index={data / 'image2label_train.json'}"
  return settings.parse(["--config=configs/demo.py:tiny", index])


def test_resume_says_whether_there_may_be_a_run(told, tmp_path):
  with pytest.raises(ValueError, match="holds no run to go on with"):
    runs.start(told, tmp_path, resume="required")
  runs.start(told, tmp_path, resume="never")
  runs.start(told, tmp_path, resume="required")
  runs.start(told, tmp_path)
  with pytest.raises(ValueError, match="holds a run; give another"):
    runs.start(told, tmp_path, resume="never")


def _changed(told, *flags):
  return settings.parse(flags, default=told)


def test_settings_that_changed_are_refused_unless_allowed(told, tmp_path):
  runs.start(told, tmp_path)
  more = ("--config.train.steps=77", "--config.train.keep=5")
  other = _changed(told, *more)
  with pytest.raises(ValueError, match=r'\+ .*"steps": 77') as caught:
    runs.start(other, tmp_path)
  assert "--allow=train.steps" in str(caught.value)
  with pytest.raises(ValueError, match=r'"keep": 5') as caught:
    runs.start(other, tmp_path, allowed=["train.steps"])
  assert '"steps"' not in str(caught.value)
  allowed = ["config.train.steps", "train.keep"]
  assert runs.start(other, tmp_path, allowed=allowed).settings.train.steps == 77
  assert settings.load(tmp_path).train.keep == 5  # from now on its own
  back = _changed(told, "--config.train.steps=10")
  runs.start(back, tmp_path, allowed=["train"])
  with pytest.raises(ValueError, match=r"no setting train.stesp"):
    runs.start(told, tmp_path, allowed=["train.stesp"])


def test_what_other_processes_could_not_use_is_taken_in(told, tmp_path):
  def item(name):
    return json.dumps({"path": name, "field": "image", "reason": "", "x": 0})

  (tmp_path / "quarantine.jsonl").write_text(item("a") + "\n")
  # Left by processes that were killed.
  (tmp_path / "quarantine-1.jsonl").write_text(f"{item('a')}\n{item('b')}\n")
  (tmp_path / "quarantine-12.jsonl").write_text(item("c") + "\n")
  run = runs.start(told, tmp_path)
  assert len(run.quarantine) == 3
  (tmp_path / "quarantine-2.jsonl").write_text(item("d") + "\n")
  run.gather_quarantine()
  assert len(run.quarantine) == 4
  assert not list(tmp_path.glob("quarantine-*"))
  lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
  assert [json.loads(line)["path"] for line in lines] == list("abcd")


@pytest.mark.parametrize("shared", [True, False])
def test_a_folder_that_not_all_processes_see_is_refused(
  tmp_path, monkeypatch, shared
):
  """The second of two, whose disk is its own or the first's."""
  first, mine = tmp_path / "first", tmp_path / ("first" if shared else "mine")
  asked = []

  def all_of(rows):
    asked.append(rows.tolist())
    first_says = [1234] if len(asked) == 1 else [True]
    return np.array([*first_says, *rows])

  def first_does(action):
    del action  # it is done where the first is
    first.mkdir(exist_ok=True)
    mark = first / "shared-1234"
    mark.unlink() if mark.exists() else mark.touch()

  monkeypatch.setattr(runs.jax, "process_count", lambda: 2)
  monkeypatch.setattr(runs.hosts, "all_of", all_of)
  monkeypatch.setattr(runs.hosts, "first_does", first_does)
  if shared:
    runs.require_shared(mine, "--out")
  else:
    with pytest.raises(
      ValueError, match=r"process 1 of 2 does not see .*mine.*give a --out"
    ):
      runs.require_shared(mine, "--out")
  assert not list(first.iterdir())


def test_one_process_shares_with_nobody(tmp_path):
  runs.require_shared(tmp_path / "report", "--out")
  assert not (tmp_path / "report").exists()
