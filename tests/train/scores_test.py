import json

from rcmed_jax.train import scores


def judged(values, keep=2, patience=3):
  """What is known after steps 10, 20, ... of these values."""
  known = scores.Scores(keep, patience)
  for step, value in enumerate(values, 1):
    known.add(10 * step, value)
  return known


def test_the_lowest_are_kept_and_of_equals_the_earlier():
  assert judged([3.0, 1.0, 2.0, 1.0]).kept == {20, 40}
  assert judged([1.0, 1.0, 1.0]).kept == {10, 20}
  assert judged([1.0, 2.0], keep=0).kept == set()


def test_patience_counts_from_the_best_of_all():
  # The second best of all is no better than the best.
  assert not judged([2.0, 1.0, 1.5, 1.2]).exhausted
  known = judged([2.0, 1.0, 1.5, 1.2, 1.0])
  assert known.exhausted
  assert known.verdict() == (
    "None of the last 3 evaluations was better than the best, 1 at step 20."
  )
  assert not judged([1.0] * 9, patience=0).exhausted


def test_what_is_not_finite_is_no_good():
  known = judged([float("nan"), float("inf"), 5.0, float("nan")])
  assert known.kept == {30}
  assert not known.exhausted
  assert judged([float("nan")] * 3).exhausted
  assert "None of 3 evaluations" in judged([float("nan")] * 3).verdict()


def test_a_checkpoint_s_meta_is_all_it_needs_to_go_on():
  values = [4.0, 3.0, 5.0, 2.0, 6.0, 7.0, 8.0]
  wanted = judged(values)
  for done in range(len(values)):
    before = judged(values[:done])
    meta = json.loads(json.dumps({"step": 10 * done} | before.meta()))
    known = scores.Scores(2, 3)
    known.restore(meta)
    for step, value in enumerate(values[done:], done + 1):
      known.add(10 * step, value)
    assert known.meta() == wanted.meta()
    assert known.exhausted == wanted.exhausted
    assert known.kept == wanted.kept
  assert scores.best(wanted.meta()) == 40


def test_the_file_tells_what_a_checkpoint_was_too_early_for(tmp_path):
  known = judged([4.0, 3.0, 5.0])
  early = {"step": 30} | judged([4.0, 3.0]).meta()
  known.write(tmp_path)
  known.add(40, 1.0)
  known.write(tmp_path)
  told = scores.read(tmp_path)
  again = scores.Scores(2, 3)
  again.restore(early, told)  # step 40 runs again
  assert again.meta() == judged([4.0, 3.0, 5.0]).meta()
  assert scores.best(early, told) == 20
  assert scores.best({"step": 40}, told) == 40
  again.add(40, 2.0)
  again.write(tmp_path)
  assert [one["evaluated"] for one in scores.read(tmp_path)] == [30, 40]
  assert scores.best({"step": 40}, scores.read(tmp_path)) == 40
  assert scores.read(tmp_path / "another") == []


def test_a_checkpoint_from_before_counts_as_evaluated():
  known = scores.Scores(1, 1)
  known.restore({"step": 7})
  assert (known.evaluated, known.kept, known.exhausted) == (7, set(), False)
  assert scores.best({"step": 7}) is None
