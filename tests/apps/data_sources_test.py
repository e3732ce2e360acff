import argparse
import stat

import layouts
import pytest

from rcmed_jax.apps import data, data_sources
from rcmed_jax.data.checks import DataError


def parsed(*argv):
  parser = argparse.ArgumentParser()
  data_sources.add_arguments(parser)
  return parser.parse_args(list(map(str, argv)))


@pytest.fixture
def index(tmp_path):
  return layouts.index(tmp_path, {"ct--a--1.png": {"liver": (3, 20, 4, 15)}})


def test_splits_and_patterns(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("b", "a", "test=odd"):
    layouts.index(tmp_path / name, {"ct--a--1.png": {}})
  opened = data_sources.open_all(
    parsed("a", "test=b", "test=odd", "validation=[ab]")
  )
  assert [(split, str(path)) for split, path, _ in opened] == [
    ("train", "a"),
    ("test", "b"),
    ("train", "test=odd"),
    ("validation", "a"),
    ("validation", "b"),
  ]


def test_options_reach_the_sources(index):
  args = parsed(
    *(index, "--modality", "pet", "--dataset", "mine", "--license", "CC0"),
    *("--label", "1=liver", "--label", "2=spleen", "--axis", "coronal"),
    *("--modality-word", "cta=computed tomography", "--assume-same-grid"),
    *("--empty-slices", "keep", "--window", "lung", "--keep-identifiers"),
  )
  ((_, _, source),) = data_sources.open_all(args)
  options = source.options
  assert options.label_names == ((1, "liver"), (2, "spleen"))
  assert options.modality_words == (("cta", "computed tomography"),)
  assert (options.modality, options.dataset, options.license) == (
    "pet",
    "mine",
    "CC0",
  )
  assert (options.axis, options.empty_slices) == ("coronal", "keep")
  assert (options.window, options.assume_same_grid) == ("lung", True)
  assert options.keep_identifiers


def test_keys_are_new_each_time_unless_they_are_kept(index, tmp_path):
  def key(*argv):
    ((_, _, source),) = data_sources.open_all(parsed(index, *argv))
    return source.options.key

  assert len(key()) == 32
  assert key() != key()
  file = tmp_path / "key"
  kept = key("--pseudonym-key", file)
  assert kept == key("--pseudonym-key", file) != key()
  assert stat.S_IMODE(file.stat().st_mode) == 0o600
  file.write_text("no key")
  with pytest.raises(DataError, match="64 hexadecimal digits"):
    key("--pseudonym-key", file)


@pytest.mark.parametrize(
  "argv",
  [
    ("--label", "liver"),
    ("--label", "one=liver"),
    ("--label", "1="),
    ("--axis", "up"),
    ("--modality-word", "cta"),
  ],
)
def test_arguments_of_another_form_are_refused(index, argv, capsys):
  with pytest.raises(SystemExit):
    parsed(index, *argv)
  assert argv[1] in capsys.readouterr().err


def test_a_split_without_a_path_is_refused():
  with pytest.raises(ValueError, match=r"'test='.*no path"):
    data_sources.open_all(parsed("test="))


# The commands.


def test_check_and_show_by_the_command_line(index, tmp_path, capsys):
  out = tmp_path / "out"
  assert data.main(["check", str(index), "--out", str(out)]) == 0
  assert "1 images, 0 faults" in capsys.readouterr().out
  assert (out / "index.html").is_file()
  (tmp_path / "ct--a--1.png").unlink()
  assert data.main(["check", str(index), "--out", str(out)]) == 1
  said = capsys.readouterr()
  assert "!         1 faults" in said.out
  assert "1 units, 0 triplets, 1 faults" in said.err
  page = tmp_path / "sheet.html"
  assert data.main(["show", str(index), "--out", str(page)]) == 0
  assert "0 pictures of 1 units, 1 faults met" in capsys.readouterr().out
  assert page.is_file()


def test_built_data_is_checked_and_shown_split_by_split(tmp_path, capsys):
  for split, seeds in (("train", 3), ("test", 2)):
    layouts.index(
      tmp_path / split,
      {
        f"ct--{split}--{n}.png": {"liver": (3, 20, 4, 15)} for n in range(seeds)
      },
    )
  built = tmp_path / "built"
  argv = [f"{s}={tmp_path / s}" for s in ("train", "test")]
  assert (
    data.main(["build", *argv, "--out", str(built), "--processes", "1"]) == 0
  )
  opened = data_sources.open_all(parsed(built))
  assert {split: len(list(s.units(pytest.fail))) for split, _, s in opened} == {
    "train": 3,
    "test": 2,
  }
  for _, _, source in opened:
    for unit in source.units(pytest.fail):
      (triplet,) = unit.triplets(pytest.fail)
      assert triplet.id == unit.id
      assert triplet.classes == unit.record.classes == ("liver",)
  capsys.readouterr()
  # Both splits were drawn from the same seeds: two pictures leak.
  out = tmp_path / "out"
  assert data.main(["check", str(built), "--out", str(out)]) == 1
  assert (
    "!         2 pictures that are in two splits" in capsys.readouterr().out
  )
