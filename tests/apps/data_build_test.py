"""From pictures on disk to training batches, as a user does it."""

import json

import cv2
import nibabel
import numpy as np
import pytest
import volume_files

from rcmed_jax import cli
from rcmed_jax.apps import runs, settings
from rcmed_jax.data import images, phantoms, readers, shards
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.mixture import Mixture
from rcmed_jax.data.shards import Shards


def _rcmed(*argv) -> int:
  return cli.main([*map(str, argv)])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  folder = tmp_path_factory.mktemp("drawn")
  phantoms.write(folder, 18, seed=0, held_out=9, size=64)
  return folder


@pytest.fixture(scope="module")
def built(drawn, tmp_path_factory):
  out = tmp_path_factory.mktemp("built") / "set"
  assert _rcmed(*_command(drawn, out)) == 0
  return out


def _command(drawn, out):
  return (
    *("data", "build", drawn / "image2label_train.json"),
    f"test={drawn / 'image2label_test.json'}",
    *("--descriptions", drawn / "descriptions_train.json"),
    *("--out", out, "--processes", 1, "--shard-units", 5),
  )


def test_an_index_comes_out_as_it_went_in(drawn, built):
  records = readers.read_index(
    drawn / "image2label_train.json", drawn / "descriptions_train.json"
  )
  found = Shards(built, "train")
  assert len(found) == 18 and len(Shards(built, "test")) == 9
  for record, stored in zip(records, found, strict=True):
    for name in ("id", "classes", "modality", "dataset", "description"):
      assert getattr(stored, name) == getattr(record, name)
    one, other = record.load(), stored.load()
    np.testing.assert_array_equal(one.image_IJC, other.image_IJC)
    np.testing.assert_array_equal(one.masks_GIJ, other.masks_GIJ)
  assert found.class_table() == readers.class_table(records)


def test_it_says_what_it_did(drawn, tmp_path, capsys):
  first = sorted((drawn / "images").glob("*.png"))[0]
  whole = first.read_bytes()
  first.write_bytes(b"torn")
  try:
    assert _rcmed(*_command(drawn, tmp_path / "set")) == 0
  finally:
    first.write_bytes(whole)
  told = capsys.readouterr().out
  assert "27 units = 26 used + 1 quarantined + 0 without target" in told
  listed = tmp_path / "set" / "quarantine.jsonl"
  assert f"1 faults and slices left out are listed in {listed}" in told
  (line,) = (tmp_path / "set/quarantine.jsonl").read_text().splitlines()
  assert json.loads(line)["path"] == str(first)


def test_other_arguments_are_refused(drawn, built, capsys):
  assert _rcmed(*_command(drawn, built), "--dataset", "mine") == 2
  told = capsys.readouterr().err
  assert '+   "dataset": "mine"' in told and '-   "dataset": ""' in told


def test_verify_names_a_changed_shard(drawn, tmp_path, capsys):
  assert _rcmed(*_command(drawn, tmp_path / "set")) == 0
  assert _rcmed("data", "verify", tmp_path / "set") == 0
  path = sorted((tmp_path / "set").glob("rcmed-train*"))[1]
  data = bytearray(path.read_bytes())
  data[1000] ^= 1
  path.write_bytes(data)
  assert _rcmed("data", "verify", tmp_path / "set") == 1
  assert f"{path}: shard: its bytes are not those" in capsys.readouterr().out


def test_sources_of_one_split_keep_their_ids_apart(drawn, tmp_path):
  index = drawn / "image2label_train.json"
  command = ("data", "build", index, index, "--out", tmp_path / "set")
  assert _rcmed(*command, "--processes", 1) == 0
  ids = [stored.id for stored in Shards(tmp_path / "set")]
  assert len(ids) == len(set(ids)) == 36
  assert ids[0].startswith("image2label_train/images/")
  assert ids[18].startswith("image2label_train-2/images/")


@pytest.mark.parametrize("many", [False, True])
def test_training_reads_built_sets(drawn, built, tmp_path, many):
  index = drawn / "image2label_test.json"
  told = settings.parse(
    [
      "--config=configs/demo.py:tiny",
      f"--config.data.mixture=(('{built}:train', 3.0), ('{index}', 1.0))"
      if many
      else f"--config.data.index={built}:train",
      "--config.mesh.data=-1",
      "--config.train.batch_size=8",
      "--config.data.temperature=2.0",
      "--config.data.augment.mirror=true",
    ]
  )
  run = runs.start(told, tmp_path)
  assert isinstance(run.items, Mixture if many else Shards)
  assert len(run.items) == (27 if many else 18)
  batches = run.batches()
  seen = {int(n) for _ in range(40) for n in next(batches)["record_B"]}
  assert len(seen) > 15 and max(seen) < len(run.items)
  assert (max(seen) >= 18) == many
  # Of the tiny config, whose texts are short; no image, no mask.
  lines = (tmp_path / runs.QUARANTINE).read_text().splitlines()
  assert {json.loads(line)["field"] for line in lines} <= {"description"}


def test_a_set_of_nothing_is_told_and_not_trained_on(tmp_path, capsys):
  (tmp_path / "image2label_mine.json").write_text(
    json.dumps({"ct--mine--0.png": [{"gone.png": "liver"}]})
  )
  index, out = tmp_path / "image2label_mine.json", tmp_path / "set"
  assert _rcmed("data", "build", index, "--out", out, "--processes", 1) == 1
  assert "1 units = 0 used + 1 quarantined" in capsys.readouterr().out
  told = settings.parse(
    ["--config=configs/demo.py:tiny", f"--config.data.index={out}"]
  )
  with pytest.raises(DataError, match=r"holds no sample.*quarantine\.jsonl"):
    runs.start(told, tmp_path / "run")


def test_a_volume_of_another_grid_is_built_only_knowingly(shared, tmp_path):
  command = ("data", "build", shared / "data/liver_mr", "--label", "1=liver")
  told = ("--modality", "magnetic resonance", "--processes", 1)
  out = tmp_path / "refused"
  assert _rcmed(*command, *told, "--out", out) == 1
  (line,) = (out / "quarantine.jsonl").read_text().splitlines()
  assert "label.nii.gz" in line
  out = tmp_path / "taken"
  assert _rcmed(*command, *told, "--out", out, "--assume-same-grid") == 0
  for stored in Shards(out):
    triplet = stored.load()
    assert triplet.classes == ("liver",) and triplet.masks_GIJ.any()
    assert triplet.spacing_mm == pytest.approx((1.543, 1.543), abs=1e-3)


def test_a_bucket_is_not_read_from(tmp_path):
  told = settings.parse(
    ["--config=configs/demo.py:tiny", "--config.data.index=gs://bkt/set:train"]
  )
  with pytest.raises(ValueError, match="lies in a bucket"):
    runs.start(told, tmp_path)


def test_a_mixture_takes_no_descriptions_of_one_index(built, tmp_path):
  told = settings.parse(
    [
      "--config=configs/demo.py:tiny",
      f"--config.data.mixture=(('{built}:train', 1.0),)",
      "--config.data.descriptions=texts.json",
    ]
  )
  with pytest.raises(ValueError, match=r"data\.descriptions is of one index"):
    runs.start(told, tmp_path)


def test_the_ten_real_images_are_built_and_read(shared, tmp_path):
  index = shared / "data/real9/image2label_real9.json"
  out = tmp_path / "set"
  assert _rcmed("data", "build", index, "--out", out, "--processes", 2) == 0
  assert not any(
    shards.faults(out, shard) for shard in shards.read_manifest(out)["shards"]
  )
  records = readers.read_index(index)
  for record, stored in zip(records, Shards(out), strict=True):
    triplet = stored.load()
    image_BGR = cv2.imread(record.image)
    np.testing.assert_array_equal(triplet.image_IJC, image_BGR[..., ::-1])
    for (path, name), mask_IJ in zip(
      record.masks, triplet.masks_GIJ, strict=True
    ):
      assert name in stored.classes
      expected_IJ = images.read_mask(path, image_BGR.shape[:2])
      np.testing.assert_array_equal(mask_IJ, expected_IJ)


def test_the_window_of_volumes_is_recorded(tmp_path):
  image, labels, affine = volume_files.patient()
  for kind, voxels in (("images", image - np.int16(1024)), ("labels", labels)):
    folder = tmp_path / "in" / kind
    folder.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / "a.nii.gz")
  told = ("--modality", "ct", "--label", "1=liver", "--label", "2=liver tumor")
  out = tmp_path / "set"
  kept = ("--empty-slices", "keep", "--processes", 1, "--out", out)
  assert _rcmed("data", "build", tmp_path / "in", *told, *kept) == 0
  found = Shards(out)
  assert found.windows() == ("liver",)
  assert {stored.window for stored in found} == {"liver"}
  assert {stored.load().window for stored in found} == {"liver"}
  assert () in {stored.classes for stored in found}
