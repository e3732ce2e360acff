"""Text to token ids and back, by the rule the released weights were fed with.

LLaMA's SentencePiece model plus seven added tokens. Text is cut at the added
tokens; white space on both sides of each is dropped; every piece between them
is encoded by itself, with its own dummy prefix:

  "contains <p> liver </p> [SEG].</s>"
  -> contains, <p>, liver, </p>, [SEG], ., </s>   (each word with its prefix)

Later tokenizers of the transformers library give other ids for the same text.
Source: the release, which ran the slow LLaMA tokenizer of transformers 4.28.
"""

from collections.abc import Iterable, Iterator, Sequence
import io
import itertools
import os
import re

from etils import epath
import numpy as np
import sentencepiece

from rcmed_jax.data import files

IGNORE_LABEL = -100  # labels that count for nothing
IMAGE_TOKEN = -200  # stands for the image among token ids

# The model's own, ids 0, 1, 2; found in a text, but not stripped around.
OWN_TOKENS = ("<unk>", "<s>", "</s>")
ADDED_TOKENS = (
  "<im_start>",
  "<im_end>",
  "<bbox>",
  "<point>",
  "[SEG]",
  "<p>",
  "</p>",
)
IMAGE_MARKER = "<image>"
# All that is read as something else than text.
MARKERS = (*OWN_TOKENS, *ADDED_TOKENS, IMAGE_MARKER)

_OWN = re.compile("(" + "|".join(OWN_TOKENS) + ")")
_ADDED = re.compile(r"\s*(" + "|".join(map(re.escape, ADDED_TOKENS)) + r")\s*")


class Tokenizer:
  """A SentencePiece model with the seven added tokens after its pieces.

  Args:
    path: a SentencePiece `.model` file with unk = 0, <s> = 1 and </s> = 2.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is no such model.
  """

  def __init__(self, path: str | os.PathLike[str]):
    path = epath.Path(path)
    if not path.is_file():
      raise FileNotFoundError(
        f"{path}: no tokenizer model there; give LLaMA's tokenizer.model or "
        "train one with rcmed train."
      )
    try:
      self._pieces = sentencepiece.SentencePieceProcessor(
        model_proto=path.read_bytes()
      )
    except RuntimeError as error:
      raise ValueError(
        f"{path} is not a SentencePiece model ({error}); copy it again."
      ) from error
    found = (
      self._pieces.unk_id(),
      self._pieces.bos_id(),
      self._pieces.eos_id(),
    )
    if found != (0, 1, 2):
      raise ValueError(
        f"{path}: unk, <s>, </s> have the ids {found}, expected (0, 1, 2), "
        "LLaMA's; use a model trained with these ids."
      )
    self.base_size = self._pieces.vocab_size()
    self._added = {
      token: self.base_size + index for index, token in enumerate(ADDED_TOKENS)
    }
    self._names = {id: token for token, id in self._added.items()}
    self.begin_id, self.end_id = found[1:]
    self.seg_id = self._added["[SEG]"]

  @property
  def vocabulary(self) -> int:
    """Pieces and added tokens; 32007 in the release."""
    return self.base_size + len(ADDED_TOKENS)

  def id_of(self, token: str) -> int:
    """The id of an added token."""
    return self._added[token]

  def pieces(self) -> Iterator[tuple[int, str]]:
    """(id, letters) of all that spells text, a space where a word begins.

    Of the bytes that stand for letters without a piece only those of ASCII:
    the others are no letters alone.
    """
    for id in range(self.base_size):
      piece = self._pieces.id_to_piece(id)
      if self._pieces.is_byte(id):
        byte = int(piece[1:-1], 16)  # "<0x0A>"
        if byte < 128:
          yield id, chr(byte)
      elif not (self._pieces.is_control(id) or self._pieces.is_unknown(id)):
        yield id, piece.replace("\u2581", " ")

  def encode(self, text: str) -> list[int]:
    """Ids of a text without an image, `<s>` in front."""
    return [self.begin_id, *self._cut(text)]

  def encode_prompt(self, text: str) -> np.ndarray:
    """int32[T]: ids of a text with one `<image>`, IMAGE_TOKEN in its place.

    Raises:
      ValueError: not exactly one `<image>` in the text.
    """
    if text.count(IMAGE_MARKER) != 1:
      raise ValueError(
        f"expected one {IMAGE_MARKER} in the prompt, received "
        f"{text.count(IMAGE_MARKER)}: {text!r}."
      )
    before, after = text.split(IMAGE_MARKER)
    ids = [*self.encode(before), IMAGE_TOKEN, *self._cut(after)]
    return np.array(ids, np.int32)

  def encode_answer(
    self, prompt: str, answer: str
  ) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels, int32[T] each, of a conversation with its answer.

    The labels are one run, from the answer's first token to `</s>`.

    Args:
      prompt: up to and including "ASSISTANT:".
      answer: with `</s>` at its end.
    """
    ids_T = self.encode_prompt(f"{prompt} {answer}")
    start = len(self.encode_prompt(prompt))
    labels_T = ids_T.copy()
    labels_T[:start] = IGNORE_LABEL
    return ids_T, labels_T

  def decode(self, ids: Iterable[int]) -> str:
    """The text of generated ids, up to the first `</s>`; markers stay."""
    known = (id for id in map(int, ids) if 0 <= id < self.vocabulary)
    said = itertools.takewhile(lambda id: id != self.end_id, known)
    words: list[str] = []
    for marker, run in itertools.groupby(said, self._names.get):
      if marker:
        words += [marker for _ in run]
      else:
        words.append(self._pieces.decode([*run]))
    # A full stop or comma closes up to the marker before it.
    return re.sub(r"(\[SEG\]|</p>) (?=[.,])", r"\1", " ".join(words))

  def _cut(self, text: str) -> list[int]:
    """Ids of a text, no `<s>` in front."""
    ids: list[int] = []
    for index, part in enumerate(_ADDED.split(text)):
      if index % 2:
        ids.append(self._added[part])
        continue
      for number, piece in enumerate(_OWN.split(part)):
        if number % 2:
          ids.append(OWN_TOKENS.index(piece))
        elif piece:
          ids += self._pieces.encode(piece)
    return ids


def pad(
  rows: Sequence[np.ndarray], lengths: Sequence[int], fill: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """int32[B, T] padded on the right, and int32[B] of the true lengths.

  T is the smallest of `lengths` that holds the longest row.

  Raises:
    ValueError: a row is longer than every length.
  """
  length_B = np.array([len(row) for row in rows], np.int32)
  width = fit(int(length_B.max()), lengths)
  tokens_BT = np.full((len(rows), width), fill, np.int32)
  for row_T, tokens_T in zip(rows, tokens_BT, strict=True):
    tokens_T[: len(row_T)] = row_T
  return tokens_BT, length_B


def fit(length: int, lengths: Sequence[int]) -> int:
  """The smallest of `lengths` that is at least `length`."""
  for width in sorted(lengths):
    if width >= length:
      return width
  raise ValueError(
    f"the text has {length} tokens and the longest of data.lengths="
    f"{tuple(lengths)} is {max(lengths)}; shorten the text or add a length."
  )


def train_tokenizer(
  texts: Iterable[str], vocabulary: int, path: str | os.PathLike[str]
) -> Tokenizer:
  """Trains a SentencePiece model with LLaMA's settings and loads it.

  Args:
    texts: whole conversations; added tokens and the image are cut out.
    vocabulary: pieces, at most; 256 of them are bytes.
    path: where the model is written.

  Raises:
    ValueError: the vocabulary is too small for the texts, or there are none.
  """
  cut = re.compile("|".join(map(re.escape, MARKERS)))
  lines = {
    line.strip()
    for text in texts
    for piece in cut.split(text)
    for line in piece.splitlines()
    if line.strip()
  }
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sorted(lines)),  # sorted: the same model each time
      model_writer=model,
      vocab_size=vocabulary,
      hard_vocab_limit=False,
      model_type="bpe",
      byte_fallback=True,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=True,
      character_coverage=1.0,
      split_digits=True,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(
      f"no tokenizer of data.vocabulary={vocabulary} pieces can be trained on "
      f"{len(lines)} lines ({error}); with 256 bytes and every letter, a few "
      "hundred pieces are needed."
    ) from error
  files.write_whole(path, model.getvalue())
  return Tokenizer(path)
