import numpy as np
import pytest

from rcmed_jax.train import bad_batches


def _done(step, bad):
  loss = np.float32(np.nan if bad else 1)
  metrics = {"loss": loss, "non_finite": np.int32(bad)}
  return bad_batches.Done(step, metrics, np.arange(2) + step, {"next": step})


def test_each_step_is_looked_at_once_and_none_is_left_out(tmp_path):
  guard = bad_batches.Guard("skip", tmp_path)
  done = [_done(step, step in (3, 4)) for step in range(1, 7)]
  found = guard.look(done[:3], upto=2)  # while step 3 runs
  found += guard.look(done[:4], upto=4)  # step 4 is due: 3 is not forgotten
  found += guard.look(done[:5], upto=4)
  assert [sentence[:6] for sentence in found] == ["step 3", "step 4"]
  assert bad_batches.read(tmp_path, 3) == bad_batches.BadBatch(
    3, [3, 4], {"loss": "nan", "non_finite": "1"}, {"next": 3}
  )
  with pytest.raises(ValueError, match=r"no batch of step 5.*those of 3, 4"):
    bad_batches.read(tmp_path, 5)


def test_stop_says_what_to_do(tmp_path):
  guard = bad_batches.Guard("stop", tmp_path)
  with pytest.raises(FloatingPointError, match=r"rcmed train --replay 1`"):
    guard.look([_done(1, True)], upto=1)
  assert bad_batches.read(tmp_path, 1).records == [1, 2]


def test_weights_that_make_every_batch_bad_stop_the_run(tmp_path):
  guard = bad_batches.Guard("skip", tmp_path)
  most = bad_batches.MOST_IN_A_ROW
  guard.look([_done(step, True) for step in range(1, most)], upto=most)
  guard.look([_done(most, False)], upto=most)  # not in a row
  with pytest.raises(FloatingPointError, match=f"the {most - 1} before it"):
    guard.look([_done(most + n, True) for n in range(1, 20)], upto=99)


def test_the_last_time_counts(tmp_path):
  for state in ("once", "again"):
    done = bad_batches.Done(
      2, _done(2, True).metrics, np.arange(2), {"next": state}
    )
    bad_batches.Guard("skip", tmp_path).look([done], upto=2)
  assert bad_batches.read(tmp_path, 2).data_state == {"next": "again"}
