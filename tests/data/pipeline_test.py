import dataclasses
import json
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from rcmed_jax.data import images, pipeline, prompts, readers, tokens
from rcmed_jax.data.checks import Quarantine
from rcmed_jax.data.tokens import IGNORE_LABEL

SIZE, MASK_SIZE, TARGETS = 32, 16, 4
SQUARES = {
  "liver": (slice(2, 20), slice(2, 14)),
  "spleen": (slice(22, 38), slice(4, 30)),
  "left kidney": (slice(5, 15), slice(18, 30)),
  "heart": (slice(8, 30), slice(8, 24)),
  "aorta": (slice(12, 16), slice(12, 16)),
}
# Image -> its classes. Of two data sets and three modalities.
CLASSES = {
  "ct--one--0.png": ["liver", "spleen", "left kidney"],
  "ct--one--1.png": ["spleen"],
  "ct--one--2.png": ["liver", "aorta"],
  "ct--two--3.png": ["heart"],
  "ct--two--4.png": ["aorta"],
  "mr--two--5.png": ["liver", "heart"],
  "x--two--6.png": [],
}
SIBLINGS = {
  ("one", "computed tomography"): {"liver", "spleen", "left kidney", "aorta"},
  ("two", "computed tomography"): {"heart", "aorta"},
  ("two", "magnetic resonance"): {"liver", "heart"},
  ("two", "X-Ray"): set(),
}
DESCRIBED = {
  "ct--one--0.png": "The liver is large.",
  "ct--two--3.png": "Round.",
}
PLAIN = pipeline.DataConfig(
  max_targets=TARGETS, lengths=(512,), mask_size=MASK_SIZE, threads=0
)


@pytest.fixture
def index(tmp_path, dataset):
  layout = {
    image: {name: SQUARES[name] for name in names}
    for image, names in CLASSES.items()
  }
  return dataset(tmp_path, layout, ((40, 32), (40, 40)), DESCRIBED)


@pytest.fixture
def records(index):
  return readers.read_index(index, index.parent / "descriptions.json")


@pytest.fixture
def build(records, tokenizer, tmp_path):
  """A pipeline over the records, settings changed."""

  def build(batch_size=4, process=0, processes=1, items=records, **changes):
    return pipeline.Pipeline(
      items,
      tokenizer,
      dataclasses.replace(PLAIN, **changes),
      image_size=SIZE,
      batch_size=batch_size,
      quarantine=Quarantine(tmp_path / "quarantine.jsonl"),
      process=process,
      processes=processes,
    )

  return build


@pytest.fixture
def faults(tmp_path):
  """What is in the quarantine by now."""
  path = tmp_path / "quarantine.jsonl"

  def read():
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]

  return read


def take(batches, count):
  return [next(batches) for _ in range(count)]


def rows(batches, count):
  """Single rows of `count` batches, as dicts of arrays without B."""
  for batch in take(batches, count):
    for b in range(len(batch["record_B"])):
      yield {key: array[b] for key, array in batch.items()}


def assert_same(one, other):
  assert one.keys() == other.keys()
  for key, array in one.items():
    np.testing.assert_array_equal(array, other[key], err_msg=key)


def said(tokenizer, row):
  """Question and parsed answer of a row."""
  ids_T = row["tokens_BT"][: row["length_B"]]
  text = tokenizer.decode(ids_T[ids_T != tokenizer.end_id])
  question, answer = text.split("ASSISTANT:")
  return question.split("picture.")[1], prompts.parse_answer(answer)


# What a batch holds.


def test_shapes_and_types(build):
  batch = next(build(batch_size=3))
  expected = {
    "pixels_BIJC": ((3, SIZE, SIZE, 3), np.uint8),
    "extent_B2": ((3, 2), np.int32),
    "tokens_BT": ((3, 512), np.int32),
    "length_B": ((3,), np.int32),
    "labels_BT": ((3, 512), np.int32),
    "seg_BG": ((3, TARGETS), np.int32),
    "valid_BG": ((3, TARGETS), bool),
    "masks_BGIJ": ((3, TARGETS, MASK_SIZE, MASK_SIZE), np.uint8),
    "record_B": ((3,), np.int64),
  }
  assert batch.keys() == expected.keys()
  for key, (shape, dtype) in expected.items():
    assert (batch[key].shape, batch[key].dtype) == (shape, dtype), key


@pytest.mark.parametrize("cache", [False, True])
def test_rows_hold_their_record(build, records, tokenizer, cache, faults):
  batches = build(cache=cache, shuffle_classes=True, negative_share=0.3)
  for row in rows(batches, 20):
    record = records[row["record_B"]]
    _, answer = said(tokenizer, row)
    assert answer.modality == record.modality
    assert set(answer.present) <= set(record.classes)
    image_IJC = images.read(record.image)
    pixels_IJC, extent_2 = images.prepare(image_IJC, SIZE)
    np.testing.assert_array_equal(row["pixels_BIJC"], pixels_IJC)
    np.testing.assert_array_equal(row["extent_B2"], extent_2)
    count = len(answer.present)
    assert row["valid_BG"].tolist() == [g < count for g in range(TARGETS)]
    assert not row["seg_BG"][count:].any()
    assert not row["masks_BGIJ"][count:].any()
    (places,) = np.nonzero(row["tokens_BT"] == tokenizer.seg_id)
    assert row["seg_BG"][:count].tolist() == places.tolist()
    for name, mask_IJ in zip(answer.present, row["masks_BGIJ"], strict=False):
      stored_IJ = np.zeros(image_IJC.shape[:2], bool)
      stored_IJ[SQUARES[name]] = True
      expected_IJ = images.prepare_mask(stored_IJ, MASK_SIZE)
      np.testing.assert_array_equal(mask_IJ, expected_IJ)
  assert not faults()


def test_text_is_padded_and_labelled(build, tokenizer):
  for row in rows(build(), 5):
    length = row["length_B"]
    ids_T, labels_T = row["tokens_BT"], row["labels_BT"]
    assert not ids_T[length:].any()
    assert ids_T[length - 1] == tokenizer.end_id
    assert (ids_T == tokens.IMAGE_TOKEN).sum() == 1
    (run,) = np.nonzero(labels_T != IGNORE_LABEL)
    assert run.tolist() == list(range(run[0], length))
    np.testing.assert_array_equal(labels_T[run], ids_T[run])


def test_each_epoch_holds_each_record_once_in_another_order(build, records):
  number = len(records)
  epochs = [batch["record_B"].tolist() for batch in take(build(number), 4)]
  assert all(sorted(epoch) == list(range(number)) for epoch in epochs)
  assert len(set(map(tuple, epochs))) > 1


def test_prompts_are_drawn_anew_each_epoch(build, records, tokenizer):
  asked = {
    said(tokenizer, row)[0]
    for row in rows(build(len(records)), 8)
    if row["record_B"] == 1
  }
  assert len(asked) >= 4


# The same every time, from everywhere.


def test_the_seed_decides_and_the_threads_do_not(build):
  first = take(build(negative_share=0.3, noise_share=0.2), 6)
  again = take(build(negative_share=0.3, noise_share=0.2, threads=3), 6)
  for one, other in zip(first, again, strict=True):
    assert_same(one, other)
  other = take(build(negative_share=0.3, noise_share=0.2, seed=1), 6)
  assert any(
    one["record_B"].tolist() != two["record_B"].tolist()
    for one, two in zip(first, other, strict=True)
  )


@pytest.mark.parametrize("threads", [0, 2])
def test_resumes_exactly_also_after_prefetch(build, threads):
  batches = build(threads=threads, noise_share=0.2)
  take(batches, 3)
  if threads:
    time.sleep(0.3)  # let it read ahead
  state = json.loads(json.dumps(batches.get_state()))
  expected = take(batches, 5)
  fresh = build(threads=threads, noise_share=0.2)
  fresh.set_state(state)
  batches.set_state(state)
  for batch in expected:
    assert_same(next(fresh), batch)
    assert_same(next(batches), batch)


def test_processes_share_the_same_global_batches(build):
  told = {"noise_share": 0.2, "lengths": (100, 130, 160, 512)}
  whole = build(**told)
  parts = [build(process=process, processes=2, **told) for process in range(2)]
  for batch in take(whole, 5):
    shares = [next(part) for part in parts]
    for key, array in batch.items():
      joined = np.concatenate([share[key] for share in shares])
      np.testing.assert_array_equal(joined, array, err_msg=key)
  # A state of one process is a state of two.
  parts[1].set_state(whole.get_state())
  np.testing.assert_array_equal(
    next(parts[1])["pixels_BIJC"], next(whole)["pixels_BIJC"][2:]
  )


def test_rows_that_do_not_divide_are_refused(build):
  with pytest.raises(ValueError, match=r"train.batch_size=3 does not divide"):
    build(batch_size=3, processes=2)


# What is asked.


def test_forms_come_near_their_weights(build, records, tokenizer):
  batches = build(len(records), cache=True, prompt_weights=(0.5, 0.25, 0.25))
  drawn = [
    (records[row["record_B"]], *said(tokenizer, row))
    for row in rows(batches, 150)
  ]
  of_three = [
    (question.strip() in prompts.DESCRIPTION_QUESTIONS, len(answer.present))
    for record, question, answer in drawn
    if len(record.classes) == 3
  ]
  described = sum(open_ for open_, _ in of_three) / len(of_three)
  assert described == pytest.approx(0.5, abs=0.13)
  # A quarter are subsets, of which a third hold one.
  alone = sum(count == 1 for _, count in of_three) / len(of_three)
  assert alone == pytest.approx(1 / 12, abs=0.07)
  for record, question, _ in drawn:
    if record.classes and not record.description:
      assert question.strip() not in prompts.DESCRIPTION_QUESTIONS


def test_a_description_follows_only_where_it_was_asked_for(build, tokenizer):
  seen = set()
  for row in rows(build(prompt_weights=(0.5, 0.5, 0.0)), 30):
    question, _ = said(tokenizer, row)
    open_ = question.strip() in prompts.DESCRIPTION_QUESTIONS
    ids_T = row["tokens_BT"][: row["length_B"]]
    text = tokenizer.decode(ids_T[ids_T != tokenizer.end_id])
    if row["record_B"] == 0:
      assert text.endswith("[SEG]. The liver is large.") == open_
      seen.add(open_)
  assert seen == {False, True}


@pytest.mark.parametrize("shuffle", [False, True])
def test_names_come_in_random_order_where_told(build, tokenizer, shuffle):
  batches = build(shuffle_classes=shuffle, prompt_weights=(0, 1, 0))
  orders = {
    said(tokenizer, row)[1].present
    for row in rows(batches, 30)
    if row["record_B"] == 0
  }
  assert (len(orders) > 2) == shuffle


def test_only_classes_of_the_same_data_are_asked_as_absent(
  build, records, tokenizer
):
  asked = set()
  for row in rows(build(cache=True, negative_share=0.8), 60):
    record = records[row["record_B"]]
    _, answer = said(tokenizer, row)
    lacking = SIBLINGS[record.dataset, record.modality] - set(record.classes)
    assert set(answer.absent) <= lacking
    asked.update((record.id, name) for name in answer.absent)
  assert len(asked) == 8  # all that can be


def test_noise_shows_nothing_of_what_is_asked(build, records, tokenizer):
  kinds = set()
  for row in rows(build(noise_share=1.0), 30):
    record = records[row["record_B"]]
    siblings = SIBLINGS[record.dataset, record.modality]
    question, answer = said(tokenizer, row)
    shown_IJC, _ = images.prepare(images.read(record.image), SIZE)
    noisy = not np.array_equal(row["pixels_BIJC"], shown_IJC)
    assert noisy == bool(siblings)
    assert not answer.present
    assert not row["valid_BG"].any()
    if noisy:
      assert answer.absent
      assert set(answer.absent) <= siblings
      assert all(name in question for name in answer.absent)
      assert row["extent_B2"].tolist() == [SIZE, SIZE]
      assert (row["labels_BT"] != IGNORE_LABEL).any()
      kinds.add(set(answer.absent) <= set(record.classes))
  assert kinds == {False, True}  # its own classes are not there either


@pytest.mark.parametrize("noise_share", [0.0, 1.0])
def test_claims_of_absent_classes_have_empty_masks(
  build, records, tokenizer, noise_share
):
  batches = build(negative_share=0.6, noise_share=noise_share, claim_share=0.5)
  claims = denials = 0
  for row in rows(batches, 40):
    record = records[row["record_B"]]
    question, answer = said(tokenizer, row)
    present = () if noise_share else record.classes
    claimed = [name for name in answer.present if name not in present]
    denials += bool(answer.absent)
    if not claimed or not SIBLINGS[record.dataset, record.modality]:
      continue
    claims += 1
    assert list(answer.present) == claimed
    assert not answer.absent
    assert all(name in question for name in claimed)
    seg_T = np.flatnonzero(row["tokens_BT"] == tokenizer.seg_id)
    valid_G = row["valid_BG"]
    assert row["seg_BG"][valid_G].tolist() == seg_T.tolist()
    assert valid_G.sum() == len(claimed)
    assert not row["masks_BGIJ"].any()
    # Learned: that the answer begins. Not learned: that the class is there.
    learned = tokenizer.decode(row["labels_BT"][row["labels_BT"] >= 0])
    assert learned == f"This is a <p> {record.modality} </p> image. " + (
      "The image contains"
    )
  assert claims > 5
  assert denials > 5  # the others say that it is absent


def test_of_too_many_classes_all_are_learned_in_time(build, tokenizer, faults):
  batches = build(max_targets=2, prompt_weights=(1, 1, 0))
  seen = set()
  for row in rows(batches, 30):
    if row["record_B"] == 0:
      question, answer = said(tokenizer, row)
      assert len(answer.present) == row["valid_BG"].sum() == 2
      assert question.strip() not in prompts.DESCRIPTION_QUESTIONS
      seen.update(answer.present)
  assert seen == {"liver", "spleen", "left kidney"}
  assert not faults()


def test_batches_take_the_shortest_length_that_fits(build):
  batches = build(batch_size=2, lengths=(512, 90, 105, 120, 150))
  widths = set()
  for batch in take(batches, 30):
    width, longest = batch["tokens_BT"].shape[1], batch["length_B"].max()
    assert width == min(w for w in (90, 105, 120, 150, 512) if w >= longest)
    widths.add(width)
  assert len(widths) >= 2


# What is wrong.


def test_a_bad_image_leaves_a_row_with_nothing_to_learn(
  build, records, tmp_path, faults
):
  (tmp_path / "ct--one--1.png").write_text("none")
  found = 0
  for row in rows(build(len(records), threads=2), 4):
    if row["record_B"] >= 0:
      assert (row["labels_BT"] != IGNORE_LABEL).any()
      continue
    found += 1
    assert (row["labels_BT"] == IGNORE_LABEL).all()
    assert not row["valid_BG"].any()
    assert not row["masks_BGIJ"].any()
    assert (row["tokens_BT"] == tokens.IMAGE_TOKEN).sum() == 1
    assert row["extent_B2"].tolist() == [SIZE, SIZE]
  assert found == 4  # once in each epoch
  (fault,) = faults()
  assert fault["path"] == str(tmp_path / "ct--one--1.png")
  assert fault["field"] == "image"
  assert "Save it again" in fault["remedy"]


def test_an_empty_mask_leaves_only_its_target_out(
  build, records, tokenizer, tmp_path, faults
):
  path = tmp_path / "ct--one--0--spleen.png"
  cv2.imwrite(str(path), np.zeros((40, 32), np.uint8))
  for row in rows(build(len(records), prompt_weights=(0, 1, 0)), 3):
    _, answer = said(tokenizer, row)
    if row["record_B"] == 0:
      assert answer.present == ("liver", "spleen", "left kidney")
      assert row["valid_BG"].tolist() == [True, False, True, False]
      assert row["seg_BG"][1] == 0
      assert not row["masks_BGIJ"][1].any()
      assert row["masks_BGIJ"][2].any()
  (fault,) = faults()
  assert (fault["path"], fault["field"]) == (str(path), "mask")


def test_a_description_too_long_is_left_out_and_noted(
  build, records, tokenizer, faults
):
  long = dataclasses.replace(records[0], description="It is round. " * 90)
  batches = build(items=[long], lengths=(200,), prompt_weights=(1, 0, 0))
  for row in rows(batches, 2):
    question, answer = said(tokenizer, row)
    assert question.strip() in prompts.DESCRIPTION_QUESTIONS
    assert answer.present == ("liver", "spleen", "left kidney")
    assert row["valid_BG"].sum() == 3
  (fault,) = faults()
  assert (fault["path"], fault["field"]) == (long.image, "description")
  assert "at most 200 fit, so its row goes without it" in fault["reason"]
  assert "data.lengths" in fault["remedy"]


def test_names_too_long_leave_a_row_with_nothing_to_learn(
  build, records, faults
):
  masks = tuple((path, name * 20) for path, name in records[0].masks)
  long = dataclasses.replace(records[0], masks=masks)
  for row in rows(build(items=[long, records[1]], lengths=(150,)), 2):
    if row["record_B"] == -1:
      assert (row["labels_BT"] == IGNORE_LABEL).all()
      assert not row["valid_BG"].any()
      assert row["length_B"] == 150
    else:
      assert row["valid_BG"].any()
  (fault,) = faults()
  assert (fault["path"], fault["field"]) == (long.image, "classes")


def test_a_length_no_prompt_fits_is_refused_at_once(build):
  with pytest.raises(ValueError, match=r"data.lengths=\(16,\) is 16"):
    build(lengths=(16,))


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_inside_reaches_the_caller_as_it_was(
  build, monkeypatch, threads
):
  def broken(*_):
    raise MemoryError("no room for pixels")

  monkeypatch.setattr(images, "prepare", broken)
  with pytest.raises(MemoryError, match="no room for pixels"):
    next(build(threads=threads))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("prompt_weights", (0.0, 0.0, 0.0)),
    ("prompt_weights", (1.0, -1.0, 0.5)),
    ("negative_share", 1.5),
    ("noise_share", -0.1),
    ("claim_share", 1.5),
    ("max_targets", 0),
    ("mask_size", 0),
  ],
)
def test_settings_that_make_no_sense_are_named(field, value):
  with pytest.raises(ValueError, match=rf"data\.{field}="):
    pipeline.DataConfig(**{field: value})


# The real thing.


def test_the_ten_real_images_make_a_batch(shared, tokenizer, tmp_path):
  items = readers.read_index(shared / "data/real9/image2label_real9.json")
  quarantine = Quarantine(tmp_path / "quarantine.jsonl")
  batches = pipeline.Pipeline(
    items,
    tokenizer,
    pipeline.DataConfig(mask_size=64, cache=True),
    image_size=128,
    batch_size=10,
    quarantine=quarantine,
  )
  for batch in take(batches, 2):
    assert sorted(batch["record_B"]) == list(range(10))
    assert batch["valid_BG"].sum() == 10
    assert (batch["masks_BGIJ"].any((2, 3)) == batch["valid_BG"]).all()
    assert (batch["extent_B2"].max(1) == 128).all()
  assert len(quarantine) == 0


def test_the_corpus_holds_all_that_is_said(records):
  text = "\n".join(pipeline.corpus(records))
  for template in range(prompts.TEMPLATES):
    named = prompts.question(["heart", "liver"], "magnetic resonance", template)
    assert named in text
  for question in prompts.DESCRIPTION_QUESTIONS:
    assert question in text
  assert "no <p> left kidney </p>" in text
  assert DESCRIBED["ct--one--0.png"] in text


def test_input_starts_without_an_accelerator_library():
  # `pipeline` imports grain, which imports jax by itself; all else is free.
  program = (
    "import sys; from rcmed_jax.data import checks, images, prompts, readers,"
    " records, tokens; sys.exit('jax' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_few_masks_a_row_are_drawn_from_all_its_targets(build, tokenizer):
  batches = build(masks_per_row=1, prompt_weights=(0, 1, 0))
  taken = set()
  for row in rows(batches, 30):
    assert row["valid_BG"].shape == (1,)
    segs = (row["tokens_BT"] == tokenizer.seg_id).nonzero()[0].tolist()
    if row["valid_BG"][0]:
      taken.add((len(segs), segs.index(row["seg_BG"][0])))
    assert row["valid_BG"][0] == bool(segs)
  # Of three targets the first, the second and the third, each at some time.
  assert {(3, 0), (3, 1), (3, 2)} <= taken


def test_open_answers_can_leave_the_description_out(build, tokenizer):
  texts = [
    tokenizer.decode(row["tokens_BT"][row["labels_BT"] != IGNORE_LABEL])
    for row in rows(build(describe=False, prompt_weights=(1, 0, 0)), 10)
  ]
  assert texts and not any("large" in text for text in texts)
