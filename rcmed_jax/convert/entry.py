"""How one tensor of the release becomes one array of ours, and back.

An `Entry` ties one tensor of the release to one array of ours, or to one place
of a stacked one:

  Entry("model.norm.weight", "language.norm.scale")
  Entry("model.layers.3.mlp.up_proj.weight",
        "language.layers.up.kernel", index=(3,), transform=TRANSPOSE)

The path is the attribute names from the whole model (`RCMed`) to the array,
joined by dots, as they nest in `nnx.to_pure_dict`. `index` picks the layer from
the leading axes of a stacked array. The transform turns a tensor into an array
(`to_ours`) and back (`to_release`); both are views wherever NumPy can.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

Change = Callable[[np.ndarray], np.ndarray]
Index = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
  """How a tensor of the release becomes ours, and back."""

  to_ours: Change
  to_release: Change


SAME = Transform(lambda t: t, lambda a: a)
# A Linear's weight: [outputs, inputs] there, [inputs, outputs] here.
TRANSPOSE = Transform(lambda t: t.T, lambda a: a.T)


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor of the release and its place in our model."""

  release: str  # the tensor's name in the checkpoint
  path: str  # our array: attribute names joined by dots
  index: Index = ()  # layer, where ours is stacked
  transform: Transform = SAME

  @property
  def part(self) -> str:
    """The part of the model: the first name of the path."""
    return self.path.split(".")[0]
