"""Records to batches: deterministic, resumable, the same for any host count.

Two stages. The text stage runs on the whole global batch and decodes no image:
it draws each row's prompt and fixes the batch's length, so that all processes
agree on it. The image stage then loads this process's rows only.

  samples -> shuffle, repeat or mix -> draw prompt, tokenise -> global batch
          -> this process's rows -> images and masks -> arrays
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

import grain
import numpy as np

from rcmed_jax.data import augment, images, mixture, prompts, tokens
from rcmed_jax.data.augment import AugmentConfig
from rcmed_jax.data.checks import DataError, Quarantine
from rcmed_jax.data.records import Record, Sample, Triplet

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What to read and what to make of it."""

  # image2label_<split>.json, or a built data set: its folder, FOLDER:SPLIT.
  index: str = ""
  # Instead of an index, several with their shares of the rows:
  # (("data/ct:train", 2.0), ("data/skin.json", 1.0))
  mixture: tuple[tuple[str, float], ...] = ()
  # As `index`: held out. After each train.eval_every steps its losses are
  # measured, by which train.keep_best and train.patience go.
  validation: str = ""
  # 1: records as they lie. Above, rare tasks come more often than they are: a
  # task of n records has a share in proportion to n^(1/temperature).
  temperature: float = 1.0
  augment: AugmentConfig = AugmentConfig()
  descriptions: str = ""  # JSON {image: text}; "" for none
  tokenizer: str = ""  # SentencePiece model; "" trains one on the index
  vocabulary: int = 1024  # pieces of a tokenizer that is trained
  # Prompt forms: described, all targets by name, a subset by name.
  prompt_weights: tuple[float, float, float] = (0.4, 0.4, 0.2)
  describe: bool = True  # open answers end with the description, where there is
  negative_share: float = 0.0  # of questions by name that ask absent classes
  single_share: float = 0.0  # of questions by name that ask one class alone
  noise_share: float = 0.0  # of rows whose image is noise, all classes absent
  # Of the rows that ask absent classes only: the answer claims them, and their
  # masks are empty. The claim itself is not learned. So the masks know better,
  # should the text be wrong.
  claim_share: float = 0.0
  shuffle_classes: bool = False  # ask in random order, not the index's
  # Most classes of one answer, so masks of one row. Of a record with more,
  # some are drawn anew each time, so that all are learned.
  max_targets: int = 8
  # Masks that one row is trained on, drawn from its [SEG]; 0: all of them. The
  # others are trained as text. Fewer masks, more images a second.
  masks_per_row: int = 0
  lengths: tuple[int, ...] = (513,)  # of padded text; the release truncates
  mask_size: int = 256  # side of the reference masks that the loss sees
  cache: bool = False  # keep decoded samples in memory: small sets only
  threads: int = 4  # readers ahead of the training step
  seed: int = 0
  # More words of file names, ("cta", "computed tomography"), ...
  modality_words: tuple[tuple[str, str], ...] = ()

  @property
  def trained_masks(self) -> int:
    """Most masks that one row is trained on."""
    return self.masks_per_row or self.max_targets

  def __post_init__(self) -> None:
    for name in ("max_targets", "mask_size", "vocabulary"):
      if getattr(self, name) < 1:
        raise ValueError(f"data.{name}={getattr(self, name)} must be positive.")
    if self.index and self.mixture:
      raise ValueError(
        f"data.index={self.index!r} and data.mixture are both set; name all "
        "sets in data.mixture and leave data.index empty."
      )
    if not all(weight > 0 for _, weight in self.mixture):
      raise ValueError(
        f"data.mixture={self.mixture} has a weight that is not positive."
      )
    if self.temperature < 1:
      raise ValueError(
        f"data.temperature={self.temperature} must be 1 or more."
      )
    if min(self.prompt_weights) < 0 or not sum(self.prompt_weights):
      raise ValueError(
        f"data.prompt_weights={self.prompt_weights} must be three weights, "
        "none negative and not all 0."
      )
    for name in (
      "negative_share",
      "single_share",
      "noise_share",
      "claim_share",
    ):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(
          f"data.{name}={getattr(self, name)} must lie within 0..1."
        )


@dataclasses.dataclass(frozen=True)
class _Row:
  """One row after the text stage."""

  record: int  # index into the records; -1: nothing to learn here
  tokens_T: np.ndarray
  labels_T: np.ndarray
  targets: tuple[tuple[int, str], ...]  # (which [SEG] of the row, class)
  claimed: bool  # the targets are not there: their masks are empty
  noise: int | None  # seed of a noise image; None: the record's own image
  change: augment.Change | None = None  # what is done to image and masks


class Pipeline:
  """An endless, resumable iterator of batches.

  Args:
    items: the samples: records of an index, shards, or a mixture of both.
    tokenizer: of the model.
    config: see `DataConfig`.
    image_size: side of the model's frame.
    batch_size: rows over all processes.
    quarantine: takes what cannot be used. Such a row stays in its batch with
      nothing to learn from and `record_B` = -1; a bad mask alone leaves out
      its own target and the row's text, which speaks of it.
    process, processes: whose rows to load. Process p has the p-th run of
      neighbouring rows, as jax.make_array_from_process_local_data puts them.
  """

  def __init__(
    self,
    items: Sequence[Sample],
    tokenizer: tokens.Tokenizer,
    config: DataConfig,
    *,
    image_size: int,
    batch_size: int,
    quarantine: Quarantine,
    process: int = 0,
    processes: int = 1,
  ):
    if batch_size % processes:
      raise ValueError(
        f"train.batch_size={batch_size} does not divide by the {processes} "
        "processes; choose one that does."
      )
    # What stands where there is nothing to learn.
    self._blank_T = tokenizer.encode_prompt(prompts.conversation("?"))
    tokens.fit(len(self._blank_T), config.lengths)  # fails before any step
    self._items = items
    self._tokenizer = tokenizer
    self._config = config
    self._image_size = image_size
    self._quarantine = quarantine
    self._siblings = mixture.class_table(items)
    share = batch_size // processes
    self._share = slice(process * share, (process + 1) * share)
    self._loaded, self._decoded = self._load_sample, self._decode
    if config.cache and config.augment.on:
      self._loaded = functools.cache(self._load_sample)
    elif config.cache:
      self._decoded = functools.cache(self._decode)
    dataset = (
      mixture.order(items, config.seed, config.temperature)
      .random_map(self._write)
      .batch(batch_size, batch_fn=self._collate)
      .map(self._load)
    )
    options = grain.ReadOptions(
      num_threads=config.threads, prefetch_buffer_size=max(config.threads, 1)
    )
    self._batches = iter(dataset.to_iter_dataset(options))

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    return next(self._batches)

  def get_state(self) -> Any:
    """Where the iterator stands, as JSON values."""
    return self._batches.get_state()

  def set_state(self, state: Any) -> None:
    """Goes on from `get_state`'s place, whatever the process count was."""
    self._batches.set_state(state)

  def _write(self, index: int, rng: np.random.Generator) -> _Row:
    """The text stage of one row."""
    config = self._config
    try:
      record = self._items[index]
    except DataError as error:
      self._quarantine.add(error)
      return self._nothing(self._blank_T)
    siblings = self._siblings[record.dataset, record.modality]
    noisy = bool(siblings) and rng.random() < config.noise_share
    present = () if noisy else record.classes
    asked = prompts.draw(
      rng,
      present,
      [name for name in siblings if name not in present],
      record.modality,
      weights=config.prompt_weights,
      described=bool(record.description),
      most=config.max_targets,
      negative_share=config.negative_share,
      single_share=config.single_share,
      only_absent=noisy,
      shuffle=config.shuffle_classes,
    )
    noise = int(rng.integers(2**31)) if noisy else None
    claimed = not asked.present and bool(asked.absent)
    claimed &= rng.random() < config.claim_share
    says_more = asked.describe and config.describe
    description = record.description if says_more else None
    tokens_T, labels_T = self._encode(record, asked, description, claimed)
    longest = max(config.lengths)
    if description and len(tokens_T) > longest:
      self._too_long(record, "description", len(tokens_T), "goes without it")
      tokens_T, labels_T = self._encode(record, asked, None, claimed)
    if len(tokens_T) > longest:
      self._too_long(record, "classes", len(tokens_T), "teaches nothing")
      return self._nothing(tokens_T[:longest])
    named = tuple(enumerate(asked.absent if claimed else asked.present))
    kept = rng.permutation(len(named))[: self._config.trained_masks]
    targets = tuple(named[int(k)] for k in sorted(kept))
    change = None
    if config.augment.on and not noisy:
      words = [*asked.present, *asked.absent, description or ""]
      change = augment.draw(
        rng, config.augment, record.modality, ". ".join(words)
      )
    return _Row(index, tokens_T, labels_T, targets, claimed, noise, change)

  def _nothing(self, tokens_T: np.ndarray) -> _Row:
    """A row of text from which nothing is learned."""
    labels_T = np.full(len(tokens_T), tokens.IGNORE_LABEL, np.int32)
    return _Row(-1, tokens_T, labels_T, (), False, None)

  def _encode(
    self,
    record: Sample,
    asked: prompts.Asked,
    description: str | None,
    claimed: bool,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of one conversation."""
    prompt = prompts.conversation(asked.question, describe=asked.describe)
    if not claimed:
      answer = prompts.answer(
        record.modality, asked.present, asked.absent, description
      )
      return self._tokenizer.encode_answer(prompt, answer)
    tokens_T, labels_T = self._tokenizer.encode_answer(
      prompt, prompts.answer(record.modality, asked.absent)
    )
    opening = prompts.opening(record.modality)
    true = len(self._tokenizer.encode_prompt(f"{prompt} {opening}"))
    labels_T[true:] = tokens.IGNORE_LABEL
    return tokens_T, labels_T

  def _too_long(
    self, record: Sample, what: str, length: int, outcome: str
  ) -> None:
    self._quarantine.add(
      DataError(
        record.image if isinstance(record, Record) else record.id,
        what,
        f"the text has {length} tokens and at most "
        f"{max(self._config.lengths)} fit, so its row {outcome}",
        "Shorten it or add a length to data.lengths",
      )
    )

  def _collate(self, rows: Sequence[_Row]) -> tuple[int, list[_Row]]:
    """The global batch's length and this process's rows."""
    longest = max(len(row.tokens_T) for row in rows)
    return tokens.fit(longest, self._config.lengths), list(rows[self._share])

  def _load(self, batch: tuple[int, list[_Row]]) -> Batch:
    """The image stage: arrays of this process's rows."""
    length, rows = batch
    shapes = batch_shapes(self._config, self._image_size, len(rows), length)
    arrays = {name: np.zeros(*spec) for name, spec in shapes.items()}
    arrays["extent_B2"][:] = self._image_size
    arrays["tokens_BT"], arrays["length_B"] = tokens.pad(
      [row.tokens_T for row in rows], (length,)
    )
    arrays["labels_BT"], _ = tokens.pad(
      [row.labels_T for row in rows], (length,), tokens.IGNORE_LABEL
    )
    arrays["record_B"] = np.array([row.record for row in rows], np.int64)
    for b, row in enumerate(rows):
      self._fill(arrays, b, row)
    return arrays

  def _fill(self, arrays: Batch, b: int, row: _Row) -> None:
    """Writes row b's image and masks; a bad sample stays blank."""
    if row.record < 0:
      return
    masks: dict[str, np.ndarray] = {}
    if row.noise is not None:
      rng = np.random.default_rng(row.noise)
      arrays["pixels_BIJC"][b] = images.noise(rng, self._image_size)
    else:
      try:
        pixels_IJC, extent_2, masks = self._decoded(row.record, row.change)
      except DataError as error:
        self._quarantine.add(error)
        arrays["labels_BT"][b] = tokens.IGNORE_LABEL
        arrays["record_B"][b] = -1
        return
      arrays["pixels_BIJC"][b] = pixels_IJC
      arrays["extent_B2"][b] = extent_2
    (seg_G,) = (row.tokens_T == self._tokenizer.seg_id).nonzero()
    for g, (k, name) in enumerate(row.targets):
      if not row.claimed and name not in masks:
        # Quarantined: the answer speaks of what is unknown.
        arrays["labels_BT"][b] = tokens.IGNORE_LABEL
        continue
      arrays["seg_BG"][b, g] = seg_G[k]
      arrays["valid_BG"][b, g] = True
      if not row.claimed:
        arrays["masks_BGIJ"][b, g] = masks[name]

  def _decode(
    self, index: int, change: augment.Change | None
  ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Pixels, extent and masks by class, in the model's frame."""
    triplet = self._loaded(index)
    image_IJC, masks_GIJ = triplet.image_IJC, triplet.masks_GIJ
    if change is not None:
      image_IJC, masks_GIJ = augment.apply(change, image_IJC, masks_GIJ)
    pixels_IJC, extent_2 = images.prepare(image_IJC, self._image_size)
    masks = {
      name: images.prepare_mask(mask_IJ, self._config.mask_size)
      for name, mask_IJ in zip(triplet.classes, masks_GIJ, strict=True)
    }
    return pixels_IJC, extent_2, masks

  def _load_sample(self, index: int) -> Triplet:
    return self._items[index].load(self._quarantine.add)


def batch_shapes(
  config: DataConfig, image_size: int, rows: int, length: int
) -> dict[str, tuple[tuple[int, ...], type]]:
  """(shape, dtype) of every array that a training step reads.

  Args:
    config: of the pipeline.
    image_size: side of the model's frame.
    rows: in the batch.
    length: of the padded text, one of `config.lengths`.
  """
  targets, side = (rows, config.trained_masks), config.mask_size
  return {
    "pixels_BIJC": ((rows, image_size, image_size, 3), np.uint8),
    "extent_B2": ((rows, 2), np.int32),
    "tokens_BT": ((rows, length), np.int32),
    "length_B": ((rows,), np.int32),
    "labels_BT": ((rows, length), np.int32),
    "seg_BG": (targets, np.int32),
    "valid_BG": (targets, bool),
    "masks_BGIJ": ((*targets, side, side), np.uint8),
  }


def corpus(items: Sequence[Sample]) -> Iterator[str]:
  """Text to train a tokenizer on: every template, name and description."""
  names: dict[str, set[str]] = {}
  for record in items:
    names.setdefault(record.modality, set()).update(record.classes)
    if record.description:
      yield record.description
  for modality, classes in sorted(names.items()):
    listed = sorted(classes)
    for template in range(prompts.TEMPLATES):
      yield prompts.conversation(prompts.question(listed, modality, template))
      yield prompts.answer(modality, listed, listed)
  for template in range(prompts.DESCRIPTION_TEMPLATES):
    yield prompts.conversation(prompts.description_question(template))
