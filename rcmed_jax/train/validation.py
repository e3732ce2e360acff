"""The held-out set during training: its losses, and when they are measured."""

from collections.abc import Callable, Mapping
import dataclasses
import statistics

from flax import nnx
import jax

from rcmed_jax.model import rcmed
from rcmed_jax.train import feed, losses, scores
from rcmed_jax.train import step as steps

Evaluator = Callable[[rcmed.RCMed], dict[str, float]]


class StoppedError(Exception):
  """The run is to stop; nothing was judged."""


# Of the held-out losses, before a slash, in logs.
NAME = "validation"


@dataclasses.dataclass(frozen=True)
class Rows:
  """What is held out."""

  data: feed.Batches  # of this process
  batches: int  # from the iterator's start, that make it up


class HeldOut:
  """The losses of training on rows that it does not see.

  The same rows and questions each time, without dropout; answers are given, not
  generated.
  """

  def __init__(
    self,
    layout: steps.Layout,
    rows: Rows,
    config: losses.LossConfig,
    micro_batches: int,
    asked: Callable[[], int],
  ):
    """In as many micro-batches as training, to take no more memory.

    Args:
      asked: not 0 where the run is to stop, in all processes alike; called
        before each batch.
    """
    self._rows = rows
    self._asked = asked
    self._start = rows.data.get_state()
    self._mesh = layout.mesh

    def terms(
      trainable: steps.Arrays, frozen: steps.Arrays, batch: steps.Arrays
    ) -> steps.Arrays:
      def micro(_: jax.Array, rows: steps.Arrays) -> steps.Arrays:
        total, terms = steps.loss(
          trainable, frozen, layout.graphdef, rows, None, config
        )
        return {"loss": total, **terms}

      with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
        return steps.accumulate(micro, batch, micro_batches)

    self._terms = jax.jit(terms)

  def __call__(self, state: steps.TrainState) -> dict[str, float]:
    """The loss and its terms by name, each the mean over the batches.

    Raises:
      StoppedError: the run is to stop.
    """
    assert isinstance(self._mesh, jax.sharding.Mesh)  # where arrays can lie
    self._rows.data.set_state(self._start)
    found = []
    for number in range(self._rows.batches):
      if self._asked():
        raise StoppedError
      batch = feed.fetch(self._rows.data, self._mesh, number)
      terms = self._terms(state.trainable, state.frozen, batch.arrays)
      found.append(jax.device_get(terms))
    return {
      name: statistics.fmean(float(terms[name]) for terms in found)
      for name in found[0]
    }


class Evaluation:
  """All that looks at a run from outside, and when."""

  def __init__(
    self,
    layout: steps.Layout,
    evaluators: Mapping[str, Evaluator],
    rows: Rows | None,
    known: scores.Scores,
    *,
    metric: str,
    every: int,
    last: int,
    loss_config: losses.LossConfig,
    micro_batches: int,
    asked: Callable[[], int] = lambda: 0,
  ):
    """After `every` so many steps, and the last.

    Args:
      known: takes in the `metric` of the held-out rows, if there are any.
      asked: as `HeldOut` takes it.

    Raises:
      ValueError: the held-out losses will not hold the metric.
    """
    if rows and metric not in losses.names(loss_config):
      raise ValueError(
        f"train.metric={metric!r} is none of the held-out losses: "
        f"{', '.join(losses.names(loss_config))}."
      )
    self._graphdef = layout.graphdef
    self._evaluators = evaluators
    self._held_out = rows and HeldOut(
      layout, rows, loss_config, micro_batches, asked
    )
    self._known = known
    self._metric = metric
    self._every = every
    self._last = last

  def due(self, step: int) -> bool:
    """Whether there is something to evaluate after the step."""
    at = step == self._last or (self._every > 0 and step % self._every == 0)
    return at and bool(self._evaluators or self._held_out)

  def overdue(self, step: int) -> bool:
    """Whether a run that goes on after the step had no time for it."""
    return step > 0 and self.due(step) and self._known.evaluated < step

  def idle(self) -> tuple[str, ...]:
    """A sentence, where steps are to be judged and nothing is held out."""
    if self._held_out or not self._known.wanted:
      return ()
    return (
      "train.keep_best and train.patience do nothing without a held-out set; "
      "data.validation names one.",
    )

  def run(self, state: steps.TrainState) -> dict[str, float]:
    """All numbers of a step, as "name/number".

    Raises:
      StoppedError: the run is to stop; nothing is known of the step.
    """
    step = int(state.step)
    found = {}
    model = nnx.merge(self._graphdef, state.trainable, state.frozen)
    for name, evaluate in self._evaluators.items():
      found |= {f"{name}/{k}": v for k, v in evaluate(model).items()}
    if self._held_out is None:
      self._known.passed(step)
      return found
    terms = self._held_out(state)
    self._known.add(step, terms[self._metric])
    return found | {f"{NAME}/{name}": value for name, value in terms.items()}
