import json

from rcmed_jax.train import logs


def test_lines_after_the_checkpoint_and_cut_lines_are_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  whole = [json.dumps({"step": step, "loss": 1.0}) for step in (2, 4, 6)]
  path.write_text("\n".join(whole) + '\n{"step": 3, "lo')
  with logs.Log(tmp_path, start=4, steps=8) as log:
    log.write(5, {"eval/dice": 0.25})
  steps = [json.loads(line)["step"] for line in path.open()]
  assert steps == [2, 4, 5]


def test_rate_counts_what_came_since_the_clock_was_set(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(logs.time, "perf_counter", lambda: now[0])
  with logs.Log(tmp_path, start=0, steps=8) as log:
    log.advance(8)  # slow: it compiled
    now[0] += 50
    log.restart_clock()
    for _ in range(4):
      log.advance(8)
      with log.spending("data"):
        now[0] += 0.25
      with log.spending("wait"):
        now[0] += 0.125
      now[0] += 0.125
    with log.spending("checkpoint"):
      now[0] += 10
    log.write_training(5, {"loss": 2.0})
    log.advance(8)
    now[0] += 1
    log.write_training(6, {"skipped": 1.0})
  first, second = map(json.loads, (tmp_path / "metrics.jsonl").open())
  assert first == {
    "step": 5,
    "loss": 2.0,
    "images_per_s": 16.0,
    "step_s": 0.5,
    "data_s": 0.25,
    "wait_s": 0.125,
    "checkpoint_s": 10.0,
  }
  # What was spent once counts once.
  assert second == {
    "step": 6,
    "skipped": 1.0,
    "images_per_s": 8.0,
    "step_s": 1.0,
  }


def test_a_line_right_after_the_clock_was_set_has_no_times(tmp_path):
  with logs.Log(tmp_path, start=0, steps=8) as log:
    log.advance(8)
    log.restart_clock()
    with log.spending("wait"):
      pass
    log.write_training(1, {"loss": 2.0})
  (line,) = map(json.loads, (tmp_path / "metrics.jsonl").open())
  assert line == {"step": 1, "loss": 2.0, "images_per_s": 0.0}
