import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import layouts
import PIL.Image
import pytest

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.checking import check, check_report, findings, readout
from rcmed_jax.ingest.pictures import index_file

LIVER, SPLEEN = (3, 20, 4, 15), (22, 30, 4, 15)


def run(found, out, **settings):
  """The report of index files, {split: path}."""
  opened = [
    (split, path, index_file.open_source(path, sources.Options()))
    for split, path in found.items()
  ]
  return check.check(opened, out, check.Settings(**settings))


def says(report, words):
  """The count of the finding with these words, and whether it decides."""
  return next(
    (one["count"], one["decide"])
    for one in report["findings"]
    if words in one["what"]
  )


@pytest.fixture
def messy(tmp_path):
  """Two splits with one of every trouble."""
  train = layouts.index(
    tmp_path,
    {
      "ct--a--patient1-1.png": {"liver": LIVER, "left_kidney": SPLEEN},
      "ct--a--patient1-2.png": {"kidney_left": LIVER},
      "mr--b--patient2-1.png": {"liver": (0, 40, 0, 30)},  # all of it
      "ct--a--patient3-1.png": {"liver": LIVER, "spleen": LIVER},
      "ct--a--patient3-2.png": {},
      "odd--a--1.png": {},
    },
  )
  test = layouts.index(
    tmp_path / "test",
    {"ct--a--patient1-3.png": {"liver": LIVER}, "x--c--1.png": {}},
    "image2label_test.json",
  )
  (tmp_path / "masks/ct--a--patient3-1--0.png").unlink()
  # The same picture as the first of train, saved in another way; and the
  # second of train once more.
  image = PIL.Image.fromarray(layouts.picture(0))
  image.resize((60, 80)).save(tmp_path / "test/ct--a--patient1-3.png")
  image.save(tmp_path / "ct--a--patient3-2.png")
  layouts.save(tmp_path / "test/x--c--1.png", layouts.picture(77))
  content = json.loads(train.read_text())
  train.write_text(json.dumps({**content, "ct--a--gone.png": [], "bad.png": 3}))
  layouts.save(
    tmp_path / "test/masks/ct--a--patient1-3--0.png",
    layouts.mask((3, 20, 4, 15), (80, 60)),
  )
  return {"train": train, "test": test}


@pytest.mark.parametrize("processes", [1, 2])
def test_everything_is_counted_once(messy, tmp_path, processes):
  out = tmp_path / "out"
  report = run(messy, out, processes=processes, group=r"patient(\d+)")
  counts = report["counts"]
  assert counts["units"] == 8  # with the one whose image is missing
  assert counts["read"] == 7
  assert counts["quarantined"] == 1
  assert counts["with_faults"] == 1
  assert counts["outside"] == 2  # odd--, and the entry that is no list
  assert counts["faults"] == 4
  assert report["splits"] == {"train": 5, "test": 2}
  assert report["modalities"] == {
    "computed tomography": {"train": 4, "test": 1},
    "magnetic resonance": {"train": 1},
    "X-Ray": {"test": 1},
  }
  tasks = {
    (task["modality"], task["class"]): task["splits"]
    for task in report["tasks"]
  }
  assert tasks == {
    ("computed tomography", "liver"): {"train": 1, "test": 1},
    ("computed tomography", "left kidney"): {"train": 1},
    ("computed tomography", "kidney left"): {"train": 1},
    ("computed tomography", "spleen"): {"train": 1},
    ("magnetic resonance", "liver"): {"train": 1},
  }
  assert report["sizes"]["common"] == {"40 x 30": 6, "80 x 60": 1}
  assert report["spacings_mm"] == {"unknown": 7}
  assert report["targets_per_image"] == {"0": 2, "1": 4, "2": 1}
  assert says(report, "no background") == (1, False)
  assert says(report, "without a license") == (7, False)
  assert says(report, "spelt in two ways") == (1, False)
  assert set(report["spellings"][0]["names"]) == {"left kidney", "kidney left"}
  lines = [
    json.loads(line)
    for line in (out / "quarantine.jsonl").read_text().splitlines()
  ]
  assert len(lines) == counts["faults"]
  assert sum(fault["count"] for fault in report["faults"]) == len(lines)
  assert {line["split"] for line in lines} == {"train"}
  assert findings.needs_decision(report)


def test_leakage_by_patient_and_by_picture(messy, tmp_path):
  report = run(messy, tmp_path / "out", group=r"patient(\d+)")
  leakage = report["leakage"]
  (patient,) = leakage["groups"]["examples"]
  assert patient["splits"] == {"train": 2, "test": 1}
  assert patient["ids"][:2] == [
    "train: ct--a--patient1-1.png",
    "test: ct--a--patient1-3.png",
  ]
  assert leakage["grouped"] == 6
  (near,) = leakage["near"]["examples"]
  assert near["splits"] == {"train": 2, "test": 1}
  assert leakage["equal"]["groups"] == 0
  (equal,) = report["duplicates"]["equal"]["examples"]
  assert equal["ids"] == [
    "train: ct--a--patient1-1.png",
    "train: ct--a--patient3-2.png",
  ]
  without = run(messy, tmp_path / "out")
  assert without["leakage"]["groups"]["groups"] == 0
  assert without["leakage"]["grouped"] == 0


def test_the_same_file_in_two_splits_leaks(tmp_path):
  path = layouts.index(tmp_path, {"ct--a--1.png": {"liver": LIVER}})
  report = run({"train": path, "test": path}, tmp_path / "out")
  assert says(report, "pictures that are in two splits") == (1, True)
  assert report["ids_twice"]["groups"] == 0  # ids are a split's


def test_clean_data_asks_for_nothing(tmp_path):
  path = layouts.index(
    tmp_path, {f"ct--a--{n}.png": {"liver": LIVER} for n in range(4)}
  )
  report = run({"train": path}, tmp_path / "out")
  assert not findings.needs_decision(report)
  assert report["finished"]
  assert (tmp_path / "out/quarantine.jsonl").read_text() == ""


def test_without_decoding_only_files_are_missed(messy, tmp_path):
  (tmp_path / "mr--b--patient2-1.png").write_bytes(b"no picture")
  report = run(messy, tmp_path / "out", decode=False)
  assert report["counts"]["units"] == 8
  assert report["counts"]["read"] == 7
  assert sorted((f["field"], f["count"]) for f in report["faults"]) == [
    ("entry", 1),
    ("image", 1),
    ("mask", 1),
    ("modality", 1),
  ]
  assert report["sizes"]["different"] == 0
  assert report["duplicates"]["equal"]["groups"] == 0


@dataclasses.dataclass(frozen=True)
class Unit:
  """A unit that does what it is told."""

  id: str
  does: str
  record = None  # as units of pictures have one: they go many at once

  def triplets(self, faults):
    if self.does == "raise":
      raise KeyError("Jane Doe")
    if self.does == "die":
      os.kill(os.getpid(), signal.SIGKILL)
    if self.does == "fault":
      faults(DataError(self.id, "image", "it is bad", "Leave it"))
      return
    index = pathlib.Path(self.does)
    (unit,) = index_file.open_source(index, sources.Options()).units(faults)
    yield from unit.triplets(faults)


def test_a_reader_that_fails_is_a_fault_without_its_words(tmp_path):
  index = layouts.index(tmp_path, {"ct--a--1.png": {}})
  units = [Unit("a", "raise"), Unit("b", str(index)), Unit("c", "fault")]
  first, second, third = readout.read(iter(units), 1, decode=True)
  (fault,) = first.faults
  assert "it failed with KeyError" in fault.message
  assert "Doe" not in str(fault)
  assert len(second.triplets) == 1
  assert len(third.faults) == 1


def test_a_unit_that_ends_its_process_is_a_fault_and_the_rest_goes_on(tmp_path):
  index = layouts.index(tmp_path, {"ct--a--1.png": {}})
  units = [Unit(f"{n}", str(index)) for n in range(40)]
  units[20] = Unit("20", "die")
  found = list(readout.read(iter(units), 2, decode=True))
  assert len(found) == 40
  assert [n for n, one in enumerate(found) if one.faults] == [20]
  assert "ended the process" in found[20].faults[0].message
  assert all(one.triplets for n, one in enumerate(found) if n != 20)


def test_ctrl_c_leaves_a_report_of_what_was_seen(tmp_path):
  path = layouts.index(tmp_path, {f"ct--a--{n}.png": {} for n in range(300)})
  source = index_file.open_source(path, sources.Options())

  class Interrupted:
    def units(self, faults):
      for number, unit in enumerate(source.units(faults)):
        if number == 100:
          raise KeyboardInterrupt
        yield unit

  report = check.check(
    [("train", path, Interrupted())], tmp_path / "out", check.Settings()
  )
  assert not report["finished"]
  assert 0 < report["counts"]["read"] <= 100
  page = check_report.write(tmp_path / "out", report)
  assert "stopped before the end" in page.read_text()


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_of_the_command(tmp_path, processes):
  path = tmp_path / "image2label_train.json"
  _write_large(path, 200_000, there=False)
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "rcmed_jax", "data", "check", str(path)),
      *("--out", str(tmp_path / "out"), "--processes", str(processes)),
    ],
    stderr=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[3])},
  )
  for line in process.stderr:
    if " units, " in line:
      break
  process.send_signal(signal.SIGINT)
  said, errors = process.communicate(timeout=120)
  assert process.returncode == 130, errors
  assert "Traceback" not in errors
  report = json.loads((tmp_path / "out/report.json").read_text())
  assert not report["finished"]
  assert 0 < report["counts"]["units"] < 200_000
  assert "look at" in said


def test_the_page_says_it_all_and_needs_nothing_else(messy, tmp_path):
  out = tmp_path / "out"
  report = run(messy, out, group=r"patient(\d+)")
  report["sources"][0]["path"] = "<script>alert(1)</script>"
  page = check_report.write(out, report).read_text()
  assert json.loads((out / "report.json").read_text()) == report
  assert "8 units = 7 read + 1 quarantined + 0 left out" in page
  for word in ("left kidney", "none given", "One patient or volume", "40 x 30"):
    assert word in page
  assert "<script>alert" not in page
  assert "&lt;script&gt;alert" in page
  assert "http" not in page.replace("http-equiv", "")


def test_a_pattern_that_is_none_is_refused():
  with pytest.raises(ValueError, match="is no pattern"):
    check.Settings(group="(")


# The largest there is: SyRe's train split has 3,091,443 entries in 1.5 GB.
#   RCMED_INDEX_ENTRIES=3100000 \
#     pytest -m heavy tests/ingest/checking/check_test.py
ENTRIES = int(os.environ.get("RCMED_INDEX_ENTRIES", 150_000))


@pytest.mark.heavy
@pytest.mark.parametrize("there", [False, True])
def test_a_large_index_starts_soon_and_stays_small(tmp_path, there):
  path = tmp_path / "image2label_train.json"
  _write_large(path, ENTRIES, there)
  command = [sys.executable, "-m", "rcmed_jax", "data", "check", str(path)]
  command += ["--out", str(tmp_path / "out")]
  command += ["--no-decode"] if there else []
  watched = _watch(command)
  print(watched)
  assert watched["first_s"] < 10
  assert watched["peak_mb"] < 2000
  report = json.loads((tmp_path / "out/report.json").read_text())
  counts = report["counts"]
  assert counts["units"] == ENTRIES
  assert counts["quarantined" if not there else "read"] == ENTRIES


def _write_large(path, entries, there):
  """An index of many entries.

  Those that are there are all one picture and one mask: paths that differ in
  "./" name one file.
  """
  layouts.save(path.parent / "ct--a--1.png", layouts.picture(0))
  layouts.save(path.parent / "mask.png", layouts.mask(LIVER))
  with path.open("w") as file:
    for number in range(entries):
      dots = "".join("./" if bit == "1" else "/" for bit in f"{number:022b}")
      image = (
        f"./{dots}ct--a--1.png" if there else f"images/ct--a--{number}.png"
      )
      mask = f"./{dots}mask.png" if there else f"masks/{number}.png"
      entry = f'"{image}": [{{"{mask}": "class_{number % 150}"}}]'
      file.write(("{" if not number else ",\n") + entry)
    file.write("}")


def _watch(command):
  """Runs it: seconds to its first line of counts, and its peak memory."""
  found = {}
  with subprocess.Popen(
    [sys.executable, "-c", _WATCH, *command],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[3])},
  ) as process:
    output, _ = process.communicate()
  found = json.loads(output.splitlines()[-1])
  return found


# Of a process of its own: the peak of children is that of all there ever were.
_WATCH = """
import json, resource, subprocess, sys, time
began = time.monotonic()
process = subprocess.Popen(
  sys.argv[1:], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
)
first = None
for line in process.stderr:
  if first is None and " units, " in line:
    first = time.monotonic() - began
process.wait()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({
  "first_s": round(first, 1),
  "peak_mb": used.ru_maxrss // 1024,
  "wall_s": round(time.monotonic() - began),
  "cpu_s": round(used.ru_utime + used.ru_stime),
}))
"""
