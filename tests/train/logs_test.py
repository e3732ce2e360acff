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
    for _ in range(3):
      log.advance(8)
    now[0] += 2
    log.write_training(4, {"loss": 2.0})
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert json.loads(line) == {"step": 4, "loss": 2.0, "images_per_s": 12.0}
