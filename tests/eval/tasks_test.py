from rcmed_jax.eval import tasks
from rcmed_jax.eval.tasks import Task


def test_tasks_are_modality_and_class(world):
  found = tasks.collect(world)
  assert len(found) == 8
  assert Task("X-Ray", "left lung") in found
  assert list(found) == sorted(found)
  assert str(found[-1]) == f"{found[-1].modality} / {found[-1].name}"
