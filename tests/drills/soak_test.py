from drills import soak
import pytest

pytestmark = pytest.mark.heavy


def test_killed_again_and_again_it_is_the_same_run(capsys):
  told = ["--steps=120", "--every=40", "--save=10", "--seed=1"]
  assert soak.main(told) == 0
  said = capsys.readouterr().out
  assert "120 steps" in said and " 0 kills" not in said
