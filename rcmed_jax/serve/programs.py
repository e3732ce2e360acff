"""The model's stages as compiled programs, and the images that they have seen.

  look      an image: features and, where the text before every question does
            not change what it becomes, keys and values of that text and image
  begin     the questions of a batch, after what was kept of their images
  decode    tokens, up to a limit
  finish    masks
  segment   the mask of a new class, in given words, in one pass
  features  what a new class is learnt from

A device looks at one image at a time, so that what is kept of it depends on
nothing else, and an answer not on whether it was kept. Where the batch lies
over several devices, each looks at an image of its own, and these images are
kept together, by all of them: found again only by the same questions in the
same order.
"""

import collections
from collections.abc import Callable, Hashable, Sequence
import dataclasses
import functools
import hashlib
import threading
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from rcmed_jax.data import grammar, images, prompts, tokens
from rcmed_jax.model import generate, image_encoder, rcmed
from rcmed_jax.model.adapt import Adaptation
from rcmed_jax.model.generate import Generation, Progress, Seen
from rcmed_jax.model.sampling import Choice, Grammar
from rcmed_jax.parallel import local
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.serve.questions import Sampling


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of answers: what programs are compiled for."""

  rows: int  # that a device answers together
  max_new: int  # tokens
  max_targets: int  # masks


@dataclasses.dataclass(frozen=True)
class Asked:
  """A batch that devices work on."""

  seen: Seen
  progress: Progress
  choice: Choice


class Programs:
  """What an assistant runs.

  Args:
    model: of which weights and their mesh are taken.
    kept: images, or groups of one a device, that are kept.

  Attributes:
    rows: of a batch, over all devices.
    shortest: fewest tokens of an answer that the grammar binds.
  """

  def __init__(
    self,
    model: rcmed.RCMed,
    tokenizer: tokens.Tokenizer,
    *,
    image_size: int,
    limits: Limits,
    kept: int,
  ):
    graphdef, weights = nnx.split(model)
    mesh = local.mesh_of(weights)
    shards = meshes.batch_shards(mesh) if mesh else 1
    self.rows = limits.rows * shards
    self._turns = limits.rows  # in which all devices look at one image each
    self._image_size = image_size
    self._kept = _Kept(kept)
    next_UV, left_U = grammar.table(tokenizer)
    self.shortest = int(left_U[0])
    stages = _Stages(graphdef, tokenizer, limits, Grammar(next_UV, left_U))

    def compiled(name: str, **options: Any) -> Callable[..., Any]:
      apart = local.rows_apart(getattr(stages, name), weights)
      return functools.partial(jax.jit(apart, **options), weights)

    self.segment, self._features, self._look, self._begin, self._finish = map(
      compiled, ("segment", "features", "look", "begin", "finish")
    )
    # What decoding carries is as large as all caches: it is changed in place.
    self._decode = compiled("decode", donate_argnums=1)

  def prepare(
    self, pictures: Sequence[np.ndarray]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in the model's frame, and extents."""
    prepared = [images.prepare(one, self._image_size) for one in pictures]
    return (
      np.stack([pixels for pixels, _ in prepared]),
      np.stack([extent for _, extent in prepared]),
    )

  def features(self, image_IJC: np.ndarray) -> jax.Array:
    """[Y, X, C]: pixel features of one image."""
    return self._features(*self.prepare([image_IJC]))[0]

  def begin(
    self,
    pictures: Sequence[np.ndarray],
    tokens_BT: np.ndarray,
    length_B: np.ndarray,
    choice: Choice,
  ) -> tuple[Asked, np.ndarray]:
    """A full batch, begun, and the extents of its images. It does not wait."""
    groups = [pictures[turn :: self._turns] for turn in range(self._turns)]
    looked = self._kept.all(
      [tuple(map(_digest, group)) for group in groups],
      lambda index: self._look_at(groups[index]),
    )
    extents, seen = zip(*looked, strict=True)
    # Turn by turn, as the devices saw them; row by row, as they were asked.
    extent_B2 = np.stack(extents, axis=1).reshape(-1, 2)
    read, progress = self._begin(seen, tokens_BT, length_B)
    return Asked(read, progress, choice), extent_B2

  def decode(self, asked: Asked, until: int) -> Asked:
    """The same with `until` tokens a row, where it has not ended."""
    until_B = np.full(self.rows, until, np.int32)
    progress = self._decode(asked.progress, asked.choice, until_B)
    return dataclasses.replace(asked, progress=progress)

  def finish(self, asked: Asked) -> Generation:
    """The answers with their masks."""
    return self._finish(asked.seen, asked.progress)

  def _look_at(self, pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, Any]:
    pixels_BIJC, extent_B2 = self.prepare(pictures)
    return extent_B2, self._look(pixels_BIJC, extent_B2)


class _Stages:
  """The functions that are compiled; see `generate`."""

  def __init__(
    self,
    graphdef: Any,
    tokenizer: tokens.Tokenizer,
    limits: Limits,
    grammar: Grammar,
  ):
    self._graphdef = graphdef
    self._limits = limits
    self._seg_id, self._end_id = tokenizer.seg_id, tokenizer.end_id
    self._grammar = grammar
    # All questions begin alike, up to their image.
    asked_T = tokenizer.encode_prompt(prompts.conversation("?"))
    self._lead_T = asked_T[: int(np.argmax(asked_T == tokens.IMAGE_TOKEN)) + 1]

  def look(
    self, weights: Any, pixels_BIJC: jax.Array, extent_B2: jax.Array
  ) -> Any:
    """What is kept: of causal models what `read` says, else of the encoder."""
    model = nnx.merge(self._graphdef, weights)
    visual_BED, pixels_BYXC = model.encode_image(pixels_BIJC, extent_B2)
    if not _reads_ahead(model):
      return visual_BED, pixels_BYXC
    rows = len(pixels_BIJC)
    lead_BT = jnp.tile(jnp.asarray(self._lead_T)[None], (rows, 1))
    length_B = jnp.full(rows, len(self._lead_T), jnp.int32)
    return generate.read(
      model, visual_BED, pixels_BYXC, lead_BT, length_B, room=0
    )

  def begin(
    self, weights: Any, kept: Any, tokens_BT: jax.Array, length_B: jax.Array
  ) -> tuple[Seen, Progress]:
    """The questions, read.

    Args:
      kept: of `look`, turn by turn.
    """
    model = nnx.merge(self._graphdef, weights)
    kept = jax.tree.map(
      lambda *turns: jnp.stack(turns, axis=1).reshape(-1, *turns[0].shape[1:]),
      *kept,
    )  # row by row
    room = self._limits.max_new
    if _reads_ahead(model):
      seen, cache = kept
      rest_BT = tokens_BT[:, len(self._lead_T) :]
      seen, cache = generate.extend(model, seen, cache, rest_BT, room=room)
    else:
      visual_BED, pixels_BYXC = kept
      seen, cache = generate.read(
        model, visual_BED, pixels_BYXC, tokens_BT, length_B, room=room
      )
    return seen, generate.begin(model, seen, cache, length_B, max_new=room)

  def decode(
    self,
    weights: Any,
    progress: Progress,
    choice: Choice,
    until_B: jax.Array,
  ) -> Progress:
    return generate.decode(
      nnx.merge(self._graphdef, weights),
      progress,
      choice,
      jnp.max(until_B),
      end_id=self._end_id,
      grammar=self._grammar,
    )

  def finish(self, weights: Any, seen: Seen, progress: Progress) -> Generation:
    return generate.finish(
      nnx.merge(self._graphdef, weights),
      seen,
      progress,
      seg_id=self._seg_id,
      max_targets=self._limits.max_targets,
    )

  def segment(
    self, weights: Any, batch: dict[str, jax.Array], adaptation: Adaptation
  ) -> tuple[jax.Array, jax.Array]:
    """Mask logits [B, Y, X] and quality [B] of one new class a row."""
    model = nnx.merge(self._graphdef, weights)
    said = model(batch, adaptation=adaptation)
    return said.masks_KBGYX[-1, :, 0], said.quality_BG[:, 0]

  def features(
    self, weights: Any, pixels_BIJC: jax.Array, extent_B2: jax.Array
  ) -> jax.Array:
    """[B, Y, X, C]: pixel features, no class known."""
    model = nnx.merge(self._graphdef, weights)
    order = model.config.channel_order
    pixels_BIJC = image_encoder.normalize(pixels_BIJC, extent_B2, order)
    return model.image_encoder(pixels_BIJC)[1]


class _Kept:
  """The newest things that were made, by their keys."""

  def __init__(self, most: int):
    self._most = most
    self._held: collections.OrderedDict[Hashable, Any] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  def all(
    self, keys: Sequence[Hashable], make: Callable[[int], Any]
  ) -> list[Any]:
    """What stands under the keys; what does not is made, each once."""
    found: dict[Hashable, Any] = {}
    for index, key in enumerate(keys):
      if key not in found:
        with self._lock:
          held = self._held.pop(key, None)
        found[key] = make(index) if held is None else held
        with self._lock:
          self._held[key] = found[key]
          while len(self._held) > self._most:
            self._held.popitem(last=False)
    return [found[key] for key in keys]


def choice(rows: Sequence[Sampling], max_new: int) -> Choice:
  """What is asked of each row, as arrays."""
  return Choice(
    temperature_B=np.array([one.temperature for one in rows], np.float32),
    top_p_B=np.array([one.top_p for one in rows], np.float32),
    seed_B=np.array([one.seed % 2**32 for one in rows], np.uint32),
    max_new_B=np.array([one.max_new or max_new for one in rows], np.int32),
    grammar_B=np.array([one.grammar for one in rows]),
  )


def _reads_ahead(model: rcmed.RCMed) -> bool:
  """Whether what an image becomes does not depend on the question."""
  return model.config.language.attention == "causal"


def _digest(image_IJC: np.ndarray) -> bytes:
  whole = np.ascontiguousarray(image_IJC)
  return hashlib.sha256(repr(whole.shape).encode() + whole.tobytes()).digest()
