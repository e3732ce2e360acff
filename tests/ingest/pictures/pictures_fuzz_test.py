"""Damaged pictures and indices: a clear error or a right result."""

import json
import pathlib
import random
import resource
import subprocess
import sys

import layouts
import memory
import PIL.Image
import pytest
import tifffile

from rcmed_jax.data import images
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.checking import check
from rcmed_jax.ingest.pictures import coco, index_file, tiles

BOX, OTHER = (3, 20, 4, 15), (22, 30, 4, 15)
ROUNDS = 500
# BOX, as COCO's library packs its runs.
TEXT = "S5a0g00000000000000000000eb0"
LIMIT_BYTES = 2_000_000_000

# Told apart by a command-line argument, so that a crash or a hang is a child's.
KINDS = ("png", "others", "index", "coco", "slides")


def mutated(data, rng):
  """The bytes with a few changes of the kinds that files suffer."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    place = rng.randrange(len(data) + 1)
    length = rng.choice((1, 1, 2, 4, 30))
    what = rng.randrange(5)
    if what == 0:
      data[place : place + length] = rng.randbytes(length)
    elif what == 1:
      del data[place : place + length]
    elif what == 2:
      data[place:place] = rng.randbytes(length)
    elif what == 3:
      other = rng.randrange(len(data) + 1)
      data[place : place + length] = data[other : other + length]
    elif rng.random() < 0.2:
      del data[place:]
    else:
      data[place : place + 1] = rng.choice((b"\0", b"\xff", b"[", b'"', b"{"))
    data = data or bytearray(b"\0")
  return bytes(data)


# What no entry expects.
STRANGE = (
  *(None, True, 0, -1, 1, 2**62, -0.5, 1e300, "", "\0", "../x", "/", "ä\ud800"),
  *([], {}, [[]], [{}], {"": ""}, [[1, 2, 3, 4, 5, 6]], "a" * 5000, [0] * 3000),
)


def mutated_json(value, rng):
  """Text of the value with a part replaced, doubled or taken out."""
  value = json.loads(json.dumps(value))
  for _ in range(rng.choice((1, 1, 2))):
    here = value
    while True:
      keys = list(here) if isinstance(here, dict) else range(len(here))
      if not keys:
        break
      key = rng.choice(list(keys))
      if isinstance(here[key], dict | list) and rng.random() < 0.7:
        here = here[key]
        continue
      what = rng.randrange(4)
      if what == 0:
        del here[key]
      elif what == 1 and isinstance(here, dict):
        name = rng.choice([one for one in STRANGE if isinstance(one, str)])
        here[name] = here.pop(key)
      elif what == 2 and isinstance(here, list):
        here.append(here[key])
      else:
        here[key] = rng.choice(STRANGE)
      break
  return json.dumps(value).encode()


def damaged(path, content, rng):
  """Writes it with damage to its text, to what it says, or with none."""
  kind = rng.random()
  if kind < 0.6:
    path.write_bytes(mutated_json(content, rng))
  elif kind < 0.95:
    path.write_bytes(mutated(json.dumps(content).encode(), rng))
  else:
    path.write_text(json.dumps(content))


def slides(folder, rng, faults):
  """A mutated slide with a mutated mask."""
  del faults
  folder = folder / "slides"
  for part in ("slides", "masks/liver"):
    values = layouts.picture(1, (70, 90))
    if part != "slides":
      values = layouts.mask(BOX, (70, 90)) * 255
    path = folder / part / "ct--1.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    how = (
      {"tile": (16, 16), "compression": "zlib"} if rng.random() < 0.7 else {}
    )
    tifffile.imwrite(
      path,
      values.astype("u1"),
      photometric="rgb" if values.ndim == 3 else "minisblack",
      **how,
    )
    if rng.random() < 0.7:
      path.write_bytes(mutated(path.read_bytes(), rng))
  return tiles.open_source(folder, sources.Options(tile=32))


def others(folder, rng, faults):
  """Pictures in other formats, each read in the three ways there are."""
  image = PIL.Image.fromarray(layouts.picture(0))
  pages = {"save_all": True, "append_images": [image, image.resize((20, 20))]}
  name, what, how = rng.choice(
    (
      *(("a.tif", image, pages), ("a.tif", image, {"compression": "jpeg"})),
      *(("a.tif", image, {"compression": "tiff_lzw"}), ("a.webp", image, {})),
      *(("a.tif", image.convert("RGBA"), {}), ("a.jpg", image, {})),
      *(("a.gif", image.quantize(16), {}), ("a.bmp", image, {})),
    )
  )
  what.save(folder / name, **how)
  path = folder / name
  path.write_bytes(mutated(path.read_bytes(), rng))
  for read in (
    images.read,
    lambda file: images.read_mask(file, layouts.SHAPE),
    lambda file: images.read_labels(file, layouts.SHAPE),
  ):
    try:
      assert read(path).size
    except DataError as error:
      if read is images.read:  # the others refuse sound ones, too
        faults.append(error)
  return index_file.open_source(
    folder / "image2label_train.json", sources.Options()
  )


def png(folder, rng, faults):
  """A mutated picture with a mutated mask."""
  image, mask = folder / "ct--a--1.png", folder / "masks/ct--a--1--0.png"
  for path in (image, mask):
    if rng.random() < 0.7:
      path.write_bytes(mutated(path.read_bytes(), rng))
  try:
    image_IJC = images.read(image)
  except DataError as error:
    faults.append(error)
  else:
    assert image_IJC.ndim == 3
    assert image_IJC.shape[0] * image_IJC.shape[1] <= images.MAX_PIXELS
  return index_file.open_source(
    folder / "image2label_train.json", sources.Options()
  )


def index(folder, rng, faults):
  del faults
  path = folder / "image2label_train.json"
  damaged(path, json.loads(path.read_text()), rng)
  return index_file.open_source(path, sources.Options())


def coco_file(folder, rng, faults):
  del faults
  path = folder / "coco.json"
  size = list(layouts.SHAPE)
  polygon = [4.0, 3, 15, 3, 15.5, 20, 4, 20]
  runs = {"size": size, "counts": [100, 50, 1050]}
  text = {"size": size, "counts": TEXT}
  content = {
    "licenses": [{"id": 1, "name": "CC0"}],
    "images": [
      {"id": n, "file_name": f"ct--a--{n}.png", "height": 40, "width": 30}
      for n in (1, 2)
    ],
    "categories": [{"id": 1, "name": "liver"}, {"id": 2, "name": "spleen"}],
    "annotations": [
      {"image_id": n, "category_id": c, "segmentation": region}
      for n in (1, 2)
      for c, region in ((1, [polygon]), (2, runs), (2, text), (1, runs))
    ],
  }
  damaged(path, content, rng)
  return coco.open_source(path, sources.Options())


MAKE = {
  "png": png,
  "others": others,
  "index": index,
  "coco": coco_file,
  "slides": slides,
}


def fuzz(kind, folder, rounds):
  """Counts of what became of mutated inputs; raises where one is not caught."""
  resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES * 2, LIMIT_BYTES * 2))
  became = {"sound": 0, "faults": 0}
  for number in range(rounds):
    rng = random.Random(number)
    layouts.index(
      folder,
      {
        "ct--a--1.png": {"liver": BOX, "spleen": OTHER},
        "ct--a--2.png": {"liver": BOX},
      },
    )
    faults = []
    source = MAKE[kind](folder, rng, faults)
    report = check.check(
      [("train", folder, source)], folder / "out", check.Settings()
    )
    counts = report["counts"]
    reasons = " ".join(fault["reason"] for fault in report["faults"])
    assert "failed with" not in reasons, (number, reasons)
    assert counts["units"] == (
      counts["read"] + counts["quarantined"] + counts["left_out"]
    )
    lines = (folder / "out" / check.QUARANTINE).read_text().splitlines()
    assert len(lines) == counts["faults"]
    became["faults" if counts["faults"] or faults else "sound"] += 1
  assert memory.peak_bytes() < LIMIT_BYTES
  return became


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_is_worse_than_a_fault(tmp_path, kind):
  root = pathlib.Path(__file__).parents[3]
  result = subprocess.run(
    [sys.executable, __file__, kind, str(tmp_path), str(ROUNDS)],
    env={"PYTHONPATH": f"{root}:{root / 'tests'}", "PATH": ""},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  became = json.loads(result.stdout.splitlines()[-1])
  assert sum(became.values()) == ROUNDS
  assert became["faults"] > ROUNDS / 2
  assert became["sound"] > 10


if __name__ == "__main__":
  print(
    json.dumps(fuzz(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])))
  )
