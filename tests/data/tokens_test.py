import json
import string

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from rcmed_jax.data import prompts, tokens
from rcmed_jax.data.tokens import IGNORE_LABEL, IMAGE_TOKEN

ADDED = ["<im_start>", "<im_end>", "<bbox>", "<point>", "[SEG]", "<p>", "</p>"]
OWN = ["<unk>", "<s>", "</s>"]


@pytest.fixture(scope="module")
def pieces(tokenizer):
  """SentencePiece itself, with no rule around it."""
  model = tokenizer._pieces.serialized_model_proto()
  return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.fixture(scope="module")
def names(pieces):
  """Ids to the pieces' names."""

  def name(ids):
    base = pieces.vocab_size()
    return [
      ADDED[id - base] if id >= base else pieces.id_to_piece(id) for id in ids
    ]

  return name


def scan(pieces, text):
  """The rule once more, character by character and without `<s>`."""
  ids, buffer, place = [], "", 0
  while place < len(text):
    marker = next((m for m in ADDED + OWN if text.startswith(m, place)), None)
    if marker is None:
      buffer += text[place]
      place += 1
      continue
    place += len(marker)
    if marker in ADDED:
      buffer = buffer.rstrip()
      while place < len(text) and text[place].isspace():
        place += 1
    if buffer:
      ids += pieces.encode(buffer)
    buffer = ""
    ids.append(
      OWN.index(marker)
      if marker in OWN
      else pieces.vocab_size() + ADDED.index(marker)
    )
  return ids + (pieces.encode(buffer) if buffer else [])


# The rule of the spec, section 4.


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (
      "contains <p> liver </p> [SEG].</s>",
      ["▁contains", "<p>", "▁liver", "</p>", "[SEG]", "▁.", "</s>"],
    ),
    ("[SEG], <p> spleen", ["[SEG]", "▁,", "<p>", "▁spleen"]),
    ("<im_end> provides", ["<im_end>", "▁provides"]),
    ("liver\n [SEG] \t\n spleen", ["▁liver", "[SEG]", "▁spleen"]),
    ("[SEG]  </s>", ["[SEG]", "</s>"]),
    ("<p></p><p>", ["<p>", "</p>", "<p>"]),
  ],
)
def test_worked_examples_by_pieces(tokenizer, names, text, expected):
  ids = tokenizer.encode(text)
  # A toy model may know "." only by its dummy prefix: ▁ and . are one ▁. then.
  said = "|".join(names(ids[1:])).replace("▁|.", "▁.").replace("▁|,", "▁,")
  assert ids[0] == 1
  assert said.split("|") == expected


def test_worked_example_by_ids(tokenizer, pieces):
  base = pieces.vocab_size()
  seg, open_, close = base + 4, base + 5, base + 6
  assert tokenizer.encode("contains <p> liver </p> [SEG].</s>") == [
    1,
    pieces.piece_to_id("▁contains"),
    open_,
    pieces.piece_to_id("▁liver"),
    close,
    seg,
    *pieces.encode("."),
    2,
  ]


def test_end_is_cut_out_and_nothing_around_it_stripped(tokenizer, pieces):
  assert tokenizer.encode("liver </s> spleen") == [
    1,
    *pieces.encode("liver "),
    2,
    *pieces.encode(" spleen"),
  ]
  assert pieces.encode("liver ") != pieces.encode("liver")


def test_a_newline_inside_text_is_kept(tokenizer, pieces):
  ids = tokenizer.encode("picture.\nCan")
  assert ids[1:] == pieces.encode("picture.\nCan")
  assert pieces.piece_to_id("<0x0A>") in ids


def test_added_tokens_follow_the_pieces_in_the_released_order(tokenizer):
  base = tokenizer.base_size
  assert [tokenizer.id_of(token) - base for token in ADDED] == list(range(7))
  assert tokenizer.seg_id == base + 4
  assert tokenizer.vocabulary == base + 7
  assert (tokenizer.begin_id, tokenizer.end_id) == (1, 2)


def test_with_llama_s_32000_pieces_seg_is_32004(tmp_path, pieces):
  model = sentencepiece_model_pb2.ModelProto.FromString(
    pieces.serialized_model_proto()
  )
  for number in range(32000 - len(model.pieces)):
    model.pieces.add(piece=f"unseen{number}", score=-1000.0)
  path = tmp_path / "tokenizer.model"
  path.write_bytes(model.SerializeToString())
  llama = tokens.Tokenizer(path)
  assert {token: llama.id_of(token) for token in ADDED} == {
    "<im_start>": 32000,
    "<im_end>": 32001,
    "<bbox>": 32002,
    "<point>": 32003,
    "[SEG]": 32004,
    "<p>": 32005,
    "</p>": 32006,
  }
  assert (llama.seg_id, llama.vocabulary) == (32004, 32007)


def generated_texts(count):
  rng = np.random.default_rng(0)
  words = [
    "liver",
    "left kidney",
    "Müller",
    "λ",
    "🫀",
    "3.5",
    "<b>",
    "[SEG",
    ".",
  ]
  spaces = ["", "", " ", "  ", "\n", "\t", " \r\n", "\u3000", "\u00a0"]
  letters = list(string.printable)
  for _ in range(count):
    parts = []
    for _ in range(rng.integers(1, 16)):
      kind = rng.integers(5)
      parts.append(
        "".join(rng.choice(letters, 3))
        if kind == 0
        else str(rng.choice(words if kind < 3 else ADDED + ADDED + OWN))
      )
      parts.append(str(rng.choice(spaces)))
    yield "".join(parts)


def test_generated_texts_against_a_scanner(tokenizer, pieces):
  for text in generated_texts(300):
    assert tokenizer.encode(text) == [1, *scan(pieces, text)], text


def test_generated_conversations_against_a_scanner(tokenizer, pieces):
  rng = np.random.default_rng(1)
  classes = ["liver", "left kidney", "aorta", "Tumour core", "ödem"]
  for _ in range(1000):
    asked = prompts.draw(
      rng,
      classes[: rng.integers(4)],
      classes[3:],
      "computed tomography",
      weights=(1, 1, 1),
      described=True,
      most=4,
      negative_share=0.5,
    )
    prompt = prompts.conversation(asked.question, describe=asked.describe)
    answer = prompts.answer("pet", asked.present, asked.absent, "It is\nround.")
    ids_T, labels_T = tokenizer.encode_answer(prompt, answer)
    before, after = f"{prompt} {answer}".split("<image>")
    expected = [1, *scan(pieces, before), IMAGE_TOKEN, *scan(pieces, after)]
    assert ids_T.tolist() == expected
    assert (ids_T.dtype, labels_T.dtype) == (np.int32, np.int32)


# Prompts and labels.


def test_the_image_stands_between_its_markers(tokenizer, pieces):
  ids_T = tokenizer.encode_prompt("The <im_start><image><im_end> shows it.")
  base = pieces.vocab_size()
  expected = pieces.encode("The"), base, IMAGE_TOKEN, base + 1
  assert ids_T.tolist() == [
    1,
    *expected[0],
    *expected[1:],
    *pieces.encode("shows it."),
  ]


@pytest.mark.parametrize("text", ["none", "<image> and <image>"])
def test_a_prompt_has_one_image(tokenizer, text):
  with pytest.raises(ValueError, match=r"expected one <image>.*received [02]"):
    tokenizer.encode_prompt(text)


@pytest.mark.parametrize("describe", [False, True])
def test_labels_run_from_this_to_the_end(tokenizer, names, describe):
  prompt = prompts.conversation("Where is the liver?", describe=describe)
  answer = prompts.answer("pet", ["liver"], ["aorta"], "It is round.")
  ids_T, labels_T = tokenizer.encode_answer(prompt, answer)
  (run,) = np.nonzero(labels_T != IGNORE_LABEL)
  assert run.tolist() == list(range(run[0], len(ids_T)))
  np.testing.assert_array_equal(labels_T[run], ids_T[run])
  said = names(labels_T[run])
  assert (said[0], said[-1]) == ("▁This", "</s>")
  assert {"<p>", "</p>", "[SEG]"} < set(said)
  assert names(ids_T[run[0] - 1 : run[0]])[0].endswith(":")
  # What is answered to is what generation is given.
  np.testing.assert_array_equal(
    ids_T[: run[0]], tokenizer.encode_prompt(prompt)
  )


# And back.

ANSWERS = [
  ("pet", (), (), None),
  ("pet", ("liver",), (), None),
  ("X-Ray", ("left kidney", "Tumour core"), (), None),
  ("computed tomography", ("aorta", "liver", "spleen"), ("heart",), None),
  ("magnetic resonance", (), ("heart", "aorta"), None),
  ("pet", ("liver",), (), "The liver is large , as seen. It spans 3.5 cm."),
]


@pytest.mark.parametrize("said", ANSWERS)
def test_decoded_answers_parse_to_what_was_said(tokenizer, said):
  modality, present, absent, _ = said
  text = prompts.answer(*said)
  decoded = tokenizer.decode(tokenizer.encode(text))
  assert decoded == text.removesuffix("</s>")
  assert prompts.parse_answer(decoded) == prompts.ParsedAnswer(
    modality, present, absent
  )


def test_decoding_ends_at_the_end_and_skips_what_is_no_token(tokenizer):
  ids = tokenizer.encode("liver [SEG] [SEG]</s> spleen")
  assert tokenizer.decode(ids) == "liver [SEG] [SEG]"
  odd = [IMAGE_TOKEN, tokenizer.vocabulary, *ids[1:]]
  assert tokenizer.decode(np.array(odd)) == "liver [SEG] [SEG]"
  assert tokenizer.decode([]) == ""


def test_pieces_are_the_letters_that_their_ids_spell(tokenizer):
  found = dict(tokenizer.pieces())
  for id, letters in found.items():
    # A byte is kept; before the first word no piece has a space.
    is_byte = 3 <= id < 3 + 256
    expected = letters if is_byte else letters.removeprefix(" ")
    assert tokenizer.decode([id]) == expected
  # All but <unk>, <s>, </s> and the bytes that are no letters of ASCII.
  assert len(found) == tokenizer.base_size - 3 - 128


# Padding.


def test_rows_are_padded_to_the_smallest_length_that_fits():
  rows = [np.arange(1, 4), np.arange(1, 7)]
  tokens_BT, length_B = tokens.pad(rows, (16, 6, 8))
  assert tokens_BT.tolist() == [[1, 2, 3, 0, 0, 0], [1, 2, 3, 4, 5, 6]]
  assert length_B.tolist() == [3, 6]
  assert (tokens_BT.dtype, length_B.dtype) == (np.int32, np.int32)
  assert (
    tokens.pad(rows, (7, 16), IGNORE_LABEL)[0][0, 3:].tolist() == [-100] * 4
  )


def test_a_text_too_long_says_which_setting():
  with pytest.raises(ValueError, match=r"9 tokens.*data.lengths=\(4, 8\) is 8"):
    tokens.fit(9, (4, 8))


# Files.


def test_the_same_texts_train_the_same_model(tmp_path):
  texts = ["The image contains <p> liver </p> [SEG].</s>", "Where is it?"] * 9
  first = tokens.train_tokenizer(texts, 300, tmp_path / "a.model")
  tokens.train_tokenizer(reversed(texts), 300, tmp_path / "b.model")
  assert (tmp_path / "a.model").read_bytes() == (
    tmp_path / "b.model"
  ).read_bytes()
  assert first.vocabulary <= 300 + 7
  assert (
    first.decode(first.encode("Ünknown 文字")) == "Ünknown 文字"
  )  # by bytes


@pytest.mark.parametrize(("texts", "size"), [(["Where is it?"], 20), ([], 400)])
def test_a_tokenizer_that_cannot_be_trained(tmp_path, texts, size):
  with pytest.raises(ValueError, match=f"data.vocabulary={size}"):
    tokens.train_tokenizer(texts, size, tmp_path / "a.model")


def test_a_missing_model_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"nowhere.model: no tokenizer"):
    tokens.Tokenizer(tmp_path / "nowhere.model")


def test_another_file_is_no_model(tmp_path):
  path = tmp_path / "a.model"
  path.write_text(json.dumps({"model": "bpe"}))
  with pytest.raises(ValueError, match=r"a.model is not a SentencePiece model"):
    tokens.Tokenizer(path)


def test_a_model_of_other_ids_is_refused(tmp_path):
  path = tmp_path / "a"
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["where is the liver"] * 9),
    model_prefix=str(path),
    vocab_size=20,
    hard_vocab_limit=False,
    bos_id=-1,
    eos_id=1,
    minloglevel=2,
  )
  with pytest.raises(ValueError, match=r"ids \(0, -1, 1\), expected \(0, 1, 2"):
    tokens.Tokenizer(tmp_path / "a.model")
