"""A wall clock that jumps a day to and fro, several times a second."""

import re
import textwrap

import drilling
import pytest

pytestmark = pytest.mark.heavy

PROGRAM = """
  import sys, time

  real, begin = time.time, time.monotonic()

  def jumping():
    return real() + (-1) ** int(5 * (time.monotonic() - begin)) * 86400

  time.time = jumping
  time.time_ns = lambda: int(1e9 * jumping())

  from rcmed_jax import cli

  sys.exit(cli.main(sys.argv[1:]))
"""


def test_durations_and_what_is_kept_do_not_know_of_it(data, whole, tmp_path):
  # Half a day without a step would be a hang.
  told = drilling.flags(tmp_path, data, "--config.train.watchdog_s=43200")
  child = drilling.start(told, "-c", textwrap.dedent(PROGRAM))
  code, said = drilling.finish(child)
  assert code == 0, said
  rows = drilling.rows(tmp_path)
  for row in rows:
    assert 0 <= row["images_per_s"] < 1e5
    for name in ("step_s", "data_s", "wait_s", "checkpoint_s"):
      assert 0 <= row.get(name, 0.0) < drilling.PATIENCE_S
  # The bar: how long it took, and what is left.
  bars = re.findall(r"\[([-\d:]+)<([-\d:?]+)", said)
  assert bars
  assert not any("-" in time for bar in bars for time in bar)
  assert not any(time.count(":") > 1 for bar in bars for time in bar)  # hours
  assert drilling.saved_steps(tmp_path) == [8, 10, 12]
  drilling.assert_as_if_nothing_had_happened(tmp_path, whole)
