import dataclasses
import json
import re

from ingest.describing import vlm_server
import numpy as np
import pytest

from rcmed_jax.data import describe as geometry
from rcmed_jax.data import phantoms, pipeline, prompts, readers, tokens
from rcmed_jax.data.checks import Quarantine
from rcmed_jax.data.records import Triplet
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.describing import asking, colours, vlm
from rcmed_jax.ingest.describing.describe import Counts, Wish
from rcmed_jax.ingest.describing.endpoint import Server
from rcmed_jax.ingest.describing.replies import Replies
from rcmed_jax.ingest.pictures import index_file

SIDE = 64
# A file name that nobody may see but the one who runs it.
SECRET = "Doe_John_19700101"
PLAIN = Wish()


@dataclasses.dataclass(frozen=True)
class Unit:
  """An image of its own brightness with some targets of ten pixels."""

  number: int
  classes: tuple[str, ...] = ("liver",)

  @property
  def id(self):
    return f"{SECRET}/{self.number}.png"

  def triplets(self, faults):
    image_IJC = np.full((SIDE, SIDE, 3), 60 + self.number, np.uint8)
    masks_GIJ = np.zeros((len(self.classes), SIDE, SIDE), bool)
    for g in range(len(self.classes)):
      row, column = divmod(g, 5)
      masks_GIJ[g, 12 * row : 12 * row + 10, 12 * column : 12 * column + 10] = 1
    yield Triplet(
      id=self.id,
      image_IJC=image_IJC,
      masks_GIJ=masks_GIJ,
      classes=self.classes,
      modality="computed tomography",
      description="Patient " + SECRET,
      spacing_mm=(0.5, 0.5),
      source="hospital",
      license="secret",
      group=SECRET,
    )


@dataclasses.dataclass(frozen=True)
class Source:
  all_units: tuple[Unit, ...]

  def units(self, faults):
    yield from self.all_units


def images(count, classes=("liver",)):
  return [Source(tuple(Unit(n, classes) for n in range(count)))]


def ask(running, folder, found, wish=PLAIN, **more):
  """(bill, texts, faults) of one run with its own look into the cache."""
  quick = dict(first_wait_s=0.01, longest_wait_s=0.02, timeout_s=2.0, tries=3)
  server = Server(**{"base_url": running.url, "model": "eye", **quick, **more})
  replies = Replies(folder / "cache")
  wrong = []
  try:
    seen = asking.survey(found, server.model, wish, replies)
    bill = asking.ask(
      found, folder / "out.json", wish, server, replies, seen, wrong.append
    )
  finally:
    replies.close()
  assert bill.counts.images == seen.images
  return bill, json.loads((folder / "out.json").read_text()), wrong


def test_texts_name_classes_in_the_order_of_the_source(tmp_path):
  with vlm_server.serve() as running:
    bill, texts, wrong = ask(running, tmp_path, images(6), concurrency=3)
  assert bill.counts == Counts(asked=6) and not wrong
  assert list(texts) == [f"{SECRET}/{n}.png" for n in range(6)]
  assert set(texts.values()) == {
    "The liver is oval with a smooth boundary and an even texture."
  }
  assert 1 <= running.most_at_once <= 3


def test_nothing_but_pictures_and_colours_leaves(tmp_path):
  classes = ("Doe's tumor", "left kidney", "nuclei")
  with vlm_server.serve() as running:
    ask(running, tmp_path, images(2, classes))
  assert len(running.requests) == 2
  for request in running.requests:
    asked = request.json
    (picture,) = vlm_server.pictures(asked)
    # A JPEG of pixels: no segment but those that decoding needs.
    kinds = re.findall(
      rb"\xff([\xe0-\xef\xfe])", picture[: picture.index(b"\xff\xda")]
    )
    assert kinds == [b"\xe0"]
    assert vlm_server.decoded(picture).shape == (colours.SIDE, colours.SIDE, 3)
    sent = (request.path + json.dumps(request.headers)).encode() + request.body
    for word in (SECRET, "Doe", "tumor", "kidney", "nuclei", "hospital"):
      assert word.encode() not in sent
      assert word.encode() not in picture
    for word in ("computed", "secret", str(tmp_path), ".png"):
      assert word.encode() not in sent
    assert set(asked) == {"model", "messages", "max_tokens"}


def test_many_targets_are_asked_about_in_several_pictures(tmp_path):
  classes = tuple(f"class {n}" for n in range(10))
  with vlm_server.serve() as running:
    bill, texts, _ = ask(running, tmp_path, images(1, classes))
  assert bill.counts == Counts(asked=1)
  assert len(running.requests) == 2
  (text,) = texts.values()
  assert all(f"The {name} is oval" in text for name in classes)


def test_a_second_run_asks_for_what_is_missing(tmp_path):
  with vlm_server.serve() as running:
    ask(running, tmp_path, images(3))
    first = (tmp_path / "out.json").read_bytes()
    bill, _, _ = ask(running, tmp_path, images(5))
    assert bill.counts == Counts(asked=2, cached=3) and bill.requests == 2
    (tmp_path / "out.json").unlink()
    bill, _, _ = ask(running, tmp_path, images(3))
    assert bill.counts == Counts(cached=3) and bill.requests == 0
    assert (tmp_path / "out.json").read_bytes() == first
  assert len(running.requests) == 5


def test_what_decides_an_answer_is_in_its_key(tmp_path):
  def keys(unit, **more):
    (triplet,) = unit.triplets(pytest.fail)
    triplet = dataclasses.replace(triplet, **more)
    return [p.key for p in asking.questions.parts(triplet, "eye", False)]

  (triplet,) = Unit(1).triplets(pytest.fail)
  image_IJC = triplet.image_IJC.copy()
  image_IJC[63, 63, 2] += 1
  masks_GIJ = triplet.masks_GIJ.copy()
  masks_GIJ[0, 40, 40] = True
  same = keys(Unit(1))
  assert keys(Unit(1), id="other", source="x", classes=("spleen",)) == same
  assert keys(Unit(1), image_IJC=image_IJC) != same
  assert keys(Unit(1), masks_GIJ=masks_GIJ) != same
  assert keys(Unit(1), classes=("lungs",)) != same  # the prompt's number
  others = [
    asking.questions.parts(triplet, "ear", False)[0].key,
    asking.questions.parts(triplet, "eye", True)[0].key,
  ]
  assert len({*same, *others}) == 3


def answering(*texts):
  """A model that says these in turn, to each image anew, and then the last."""

  def script(_, asked):
    turn = sum(m["role"] == "assistant" for m in asked["messages"])
    return texts[min(turn, len(texts) - 1)]

  return script


GOOD = "The red region is round with a sharp edge and fine texture."


@pytest.mark.parametrize(
  ("bad", "told"),
  [
    ("The red region is reddish and round.", "reddish"),
    ("The picture is round and has a sharp edge.", "the red region is not"),
    ("The red region lies beside the spleen.", "spleen"),
    ("I'm sorry, but I can't help with the red region.", "I'm sorry"),
    ("The red region [SEG] is round and large.", "[SEG]"),
    ("The red region.", "too short"),
    (GOOD * 20, "too long"),
    ("-long " + GOOD, "cut off"),
  ],
)
def test_bad_answers_are_sent_back_with_the_reason(tmp_path, bad, told):
  found = [Source((Unit(0), Unit(1, ("spleen",))))]
  with vlm_server.serve(answering(bad, GOOD)) as running:
    bill, texts, wrong = ask(running, tmp_path, found, Wish(limit=0))
  assert not wrong and bill.counts == Counts(asked=2)
  liver, spleen = texts.values()
  assert liver == "The liver is round with a sharp edge and fine texture."
  assert "spleen" in spleen
  again = next(
    request.json["messages"]
    for request in running.requests
    if len(request.json["messages"]) == 3
  )
  assert [m["role"] for m in again] == ["user", "assistant", "user"]
  assert told in again[2]["content"]
  assert "liver" not in json.dumps(again)


def test_what_stays_bad_fails_and_is_listed(tmp_path):
  script = answering("The red region is reddish and round and large.")
  with vlm_server.serve(script) as running:
    bill, texts, wrong = ask(running, tmp_path, images(2), Wish(tries=2))
    assert len(running.requests) == 4
  assert bill.counts == Counts(failed=2) and texts == {}
  ids = [unit.id for unit in images(2)[0].all_units]
  assert sorted(error.path for error in wrong) == ids
  assert "reddish" in wrong[0].message
  # Nothing of it is kept, so that the next run asks again.
  with vlm_server.serve() as running:
    bill, _, _ = ask(running, tmp_path, images(2))
  assert bill.counts == Counts(asked=2)


def test_the_built_in_description_stands_in(tmp_path):
  wish = Wish(tries=1, fallback=True)
  with vlm_server.serve(answering("No.")) as running:
    bill, texts, wrong = ask(running, tmp_path, images(1), wish)
  assert bill.counts == Counts(failed=1, fallback=1)
  (triplet,) = Unit(0).triplets(pytest.fail)
  assert list(texts.values()) == [
    geometry.describe(triplet.image_IJC, triplet.masks_GIJ, triplet.classes)
  ]
  assert "built-in description stands in" in wrong[0].remedy


def test_a_model_that_never_learns_ends_the_run(tmp_path, monkeypatch):
  monkeypatch.setattr(asking, "MOST_REJECTED", 3)
  (tmp_path / "out.json").write_text("{}")
  with (
    vlm_server.serve(answering("No.")) as running,
    pytest.raises(vlm.RefusedError, match="3 images in a row were rejected"),
  ):
    ask(running, tmp_path, images(9), Wish(tries=1), concurrency=1)
  assert len(running.requests) == 3
  assert (tmp_path / "out.json").read_text() == "{}"


def test_a_wrong_key_ends_the_run_and_leaves_the_file(tmp_path):
  (tmp_path / "out.json").write_text("{}")
  with (
    vlm_server.serve(lambda *_: "-status 401") as running,
    pytest.raises(vlm.RefusedError, match="the key was refused"),
  ):
    ask(running, tmp_path, images(9))
  assert len(running.requests) <= 4
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "cache",
    "out.json",
  ]


def test_a_server_in_trouble_loses_nothing(tmp_path):
  """Every way to misbehave in turn, between good answers."""
  ways = (
    *("-status 500", "-busy 0.02", "-body {", "-cut", "-reset", "-garbage"),
    *("-page", '-body {"choices": []}', "-busy_until 0", "-silent 4"),
  )

  def script(number, asked):
    if number % 2 and number // 2 < len(ways):
      return ways[number // 2]
    return vlm_server.describing(number, asked)

  with vlm_server.serve(script) as running:
    bill, texts, wrong = ask(running, tmp_path, images(14), tries=12)
  assert bill.counts == Counts(asked=14) and not wrong and len(texts) == 14
  assert bill.requests >= len(running.requests) >= 14 + len(ways)


def test_money_stops_asking_but_not_the_cache(tmp_path):
  prices = dict(price_in=1000.0, price_out=1000.0, max_tokens=500)
  # A question of at most 1.5 and 1.05 in truth: three fit in 4.
  with vlm_server.serve() as running:
    bill, texts, _ = ask(
      running, tmp_path, images(6), max_cost=4.0, concurrency=1, **prices
    )
    assert bill.counts == Counts(asked=3, left=3) and len(texts) == 3
    assert bill.spent == pytest.approx(3.15)
    turned = [Source(tuple(reversed(images(6)[0].all_units)))]
    bill, texts, _ = ask(
      running, tmp_path, turned, max_cost=0.5, concurrency=1, **prices
    )
  assert bill.counts == Counts(cached=3, left=3) and len(texts) == 3
  assert bill.spent == 0


def test_a_kept_answer_is_checked_again(tmp_path):
  said = "The red region is round and lies beside the spleen."
  with vlm_server.serve(answering(said, GOOD)) as running:
    bill, texts, _ = ask(running, tmp_path, images(1))
    assert "spleen" in texts[f"{SECRET}/0.png"]  # no class of this set yet
    found = [Source((Unit(0), Unit(1, ("spleen",))))]
    bill, texts, _ = ask(running, tmp_path, found)
  assert bill.counts == Counts(asked=2)
  assert "spleen" not in texts[f"{SECRET}/0.png"]


def test_survey_adds_up(tmp_path):
  found = [Source((Unit(0), Unit(1, ()), Unit(2, ("liver", "lungs"))))]
  replies = Replies(tmp_path)
  seen = asking.survey(found, "eye", Wish(), replies)
  assert (seen.images, seen.blank, seen.questions, seen.cached) == (3, 1, 2, 0)
  assert seen.classes == {
    ("hospital", "computed tomography"): {"liver", "lungs"}
  }
  # 784 for a picture of 768 x 768, and four characters a token.
  assert 2 * 784 < seen.tokens_in < 2 * (784 + 400)
  assert seen.tokens_out == round(30 * 1.4) + round(60 * 1.4)


def test_descriptions_of_phantoms_reach_the_model_without_colours(tmp_path):
  phantoms.write(tmp_path / "data", 9, size=SIDE)
  index = tmp_path / "data" / "image2label_train.json"
  source = index_file.open_source(index, sources.Options())
  with vlm_server.serve() as running:
    bill, texts, wrong = ask(running, tmp_path, [source])
  assert bill.counts == Counts(asked=9) and not wrong
  records = readers.read_index(index, tmp_path / "out.json")
  assert all(record.description == texts[record.id] for record in records)
  path = tmp_path / "tokenizer.model"
  tokenizer = tokens.train_tokenizer(pipeline.corpus(records), 1024, path)
  config = pipeline.DataConfig(prompt_weights=(1.0, 0.0, 0.0), lengths=(513,))
  quarantine = Quarantine(tmp_path / "quarantine.jsonl")
  batches = pipeline.Pipeline(
    records,
    tokenizer,
    config,
    image_size=32,
    batch_size=9,
    quarantine=quarantine,
  )
  batch = next(batches)
  assert len(quarantine) == 0
  for place, number in enumerate(batch["record_B"]):
    said = tokenizer.decode(batch["tokens_BT"][place][1:])
    record = records[number]
    _, _, answer = said.partition("ASSISTANT:")
    told = prompts.parse_answer(answer)
    assert told.present == record.classes
    for name in record.classes:
      assert f"The {name} " in answer.split("[SEG]")[-1]
    assert not re.search(r"\b(?:red|green|blue|yellow|cyan)\b", answer)
