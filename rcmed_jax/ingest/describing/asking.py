"""Descriptions by a model that looks at each image's targets in colours.

triplet -> parts: targets that fit one picture -> reply, from the cache or the
server -> class names for colours -> checked -> one text an image
"""

import asyncio
from collections.abc import Callable, Sequence
import dataclasses
import os

from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet
from rcmed_jax.ingest.describing import (
  endpoint,
  phrases,
  questions,
  vlm,
  wording,
)
from rcmed_jax.ingest.describing.describe import (
  Counts,
  Wish,
  from_geometry,
  triplets,
  twice,
)
from rcmed_jax.ingest.describing.replies import Replies
from rcmed_jax.ingest.describing.texts import Texts
from rcmed_jax.ingest.sources import Faults, Source

# Characters of a rejected answer that the model is shown again.
MOST_REPEATED = 4000
# So many images in a row whose answers were all rejected: it will not learn.
MOST_REJECTED = 50


@dataclasses.dataclass(frozen=True)
class Survey:
  """What there is to ask."""

  images: int
  blank: int  # images without targets
  questions: int  # an image with many targets needs several
  cached: int  # questions
  tokens_in: int  # of those to ask, each answered at once
  tokens_out: int
  # (dataset, modality) -> its classes
  classes: dict[tuple[str, str], frozenset[str]]


@dataclasses.dataclass(frozen=True)
class Bill:
  """What asking came to."""

  counts: Counts
  spent: float  # in the unit of the prices
  requests: int  # sent, all tries and rejected answers included


def survey(
  sources: Sequence[Source],
  model: str,
  wish: Wish,
  replies: Replies,
  on_image: Callable[[], object] = lambda: None,
) -> Survey:
  """Reads everything once: what is to ask, and which classes there are."""
  images = blank = asked = cached = tokens_in = tokens_out = 0
  classes: dict[tuple[str, str], set[str]] = {}
  for triplet, _ in triplets(sources, lambda error: None, wish.limit):
    images += 1
    on_image()
    key = triplet.source, triplet.modality
    classes.setdefault(key, set()).update(triplet.classes)
    blank += not triplet.classes
    for part in questions.parts(triplet, model, wish.detail):
      asked += 1
      if part.key in replies:
        cached += 1
      else:
        tokens_in += part.tokens_in
        tokens_out += part.tokens_out
  table = {key: frozenset(names) for key, names in classes.items()}
  return Survey(images, blank, asked, cached, tokens_in, tokens_out, table)


def ask(
  sources: Sequence[Source],
  out: str | os.PathLike[str],
  wish: Wish,
  server: endpoint.Server,
  replies: Replies,
  found: Survey,
  faults: Faults,
  on_image: Callable[[], object] = lambda: None,
) -> Bill:
  """Writes descriptions made by a model, {image: text}.

  Args:
    out: a JSON file, there only once it is whole; the order is the sources'.
    replies: where answers are kept as soon as they are accepted.
    found: as `survey` found it.
    faults: takes what is wrong with the source, and images that failed.
    on_image: called after each.

  Raises:
    vlm.RefusedError: no request would be answered. `out` is as it was.
  """
  items = enumerate(triplets(sources, faults, wish.limit))

  async def run() -> Bill:
    async with vlm.Client(server) as client:
      asker = _Asker(client, server.model, wish, replies, found, faults)
      reading = asyncio.Lock()

      async def work() -> None:
        while True:
          async with reading:
            item = await asyncio.to_thread(next, items, None)
          if item is None:
            return
          number, (triplet, is_new) = item
          texts.put(number, triplet.id, await asker.text(triplet, is_new))
          on_image()

      try:
        async with asyncio.TaskGroup() as workers:
          for _ in range(server.concurrency):
            workers.create_task(work())
      except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
      return Bill(asker.counts, client.spent, client.requests)

  with Texts(out) as texts:
    return asyncio.run(run())


class _Asker:
  """The text of one image after the other."""

  def __init__(
    self,
    client: vlm.Client,
    model: str,
    wish: Wish,
    replies: Replies,
    found: Survey,
    faults: Faults,
  ):
    self._client = client
    self._model = model
    self._wish = wish
    self._replies = replies
    self._classes = found.classes
    self._faults = faults
    self._rejected = 0  # images in a row
    self.counts = Counts()

  async def text(self, triplet: Triplet, is_new: bool) -> str | None:
    """The image's description, if it gets one; counted in any case."""
    counts = self.counts
    if not is_new:
      counts.failed += 1
      self._faults(twice(triplet.id))
      return None
    if not triplet.classes:
      counts.blank += 1
      return None
    if not triplet.masks_GIJ.any((1, 2)).all():
      counts.failed += 1
      self._faults(
        DataError(
          triplet.id,
          "description",
          "a mask is empty, so there is nothing to ask about",
          "Correct the mask or leave it out",
        )
      )
      return None
    answers: list[str] = []
    asked = False
    try:
      for part in questions.parts(triplet, self._model, self._wish.detail):
        answer, is_fresh = await self._answer(triplet, part)
        answers.append(answer)
        asked |= is_fresh
    except vlm.SpentError:
      counts.left += 1
      return None
    except vlm.UnansweredError as error:
      return self._failed(triplet, str(error))
    except _RejectedError as error:
      self._rejected += 1
      if self._rejected >= MOST_REJECTED:
        raise vlm.RefusedError(
          f"{self._model}: all answers about {self._rejected} images in a row "
          f"were rejected ({error}); choose a model that keeps to the rules."
        ) from error
      return self._failed(triplet, str(error))
    self._rejected = 0
    if asked:
      counts.asked += 1
    else:
      counts.cached += 1
    return " ".join(answers)

  async def _answer(
    self, triplet: Triplet, part: questions.Part
  ) -> tuple[str, bool]:
    """The text of one part, and whether it was asked for just now."""
    kept = self._replies.get(part.key)
    if kept is not None:
      text, wrong = self._checked(kept, triplet, part)
      if not wrong:
        return text, False
      # Classes that were not known then: it is asked for again.
    messages = [await asyncio.to_thread(questions.message, triplet, part)]
    tokens_in, wrong = part.tokens_in, ""
    for _ in range(self._wish.tries):
      reply = await self._client.ask(messages, tokens_in)
      text, wrong = self._checked(reply.text, triplet, part)
      if reply.is_cut:
        wrong = "it was cut off, because it was too long"
      if not wrong:
        self._replies.add(part.key, reply.text, self._model)
        return text, True
      said = reply.text[:MOST_REPEATED]
      again = (
        f"This cannot be used: {wrong}. Write the whole answer again and keep "
        "to the rules."
      )
      messages += [
        {"role": "assistant", "content": said},
        {"role": "user", "content": again},
      ]
      tokens_in += endpoint.text_tokens(said + again)
    raise _RejectedError(f"{self._wish.tries} answers rejected: {wrong}")

  def _checked(
    self, reply: str, triplet: Triplet, part: questions.Part
  ) -> tuple[str, str]:
    """The reply with class names, and what is wrong with it."""
    bare = wording.plain(reply)
    text = phrases.named(bare, part.colours)
    known = self._classes.get((triplet.source, triplet.modality), frozenset())
    absent = known - {*triplet.classes}
    wrong = wording.faults(
      text,
      bare,
      part.colours,
      triplet.classes,
      absent,
      detail=self._wish.detail,
    )
    return text, wrong

  def _failed(self, triplet: Triplet, reason: str) -> str | None:
    self.counts.failed += 1
    remedy = "Run again to ask once more; the image goes without a description"
    if self._wish.fallback:
      self.counts.fallback += 1
      remedy = "The built-in description stands in; run again to ask once more"
    self._faults(DataError(triplet.id, "description", reason, remedy))
    if not self._wish.fallback:
      return None
    return from_geometry(triplet, self._wish.detail)


class _RejectedError(Exception):
  """No answer would do."""
