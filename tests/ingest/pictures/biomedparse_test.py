import json

import layouts
import numpy as np
import pytest

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.pictures import biomedparse

LIVER, SPLEEN = (3, 20, 4, 15), (22, 30, 4, 15)


def opened(path, **options):
  return biomedparse.open_source(path, sources.Options(**options))


def read(path, **options):
  faults = []
  found = [
    triplet
    for unit in opened(path, **options).units(faults.append)
    for triplet in unit.triplets(faults.append)
  ]
  return found, faults


@pytest.mark.parametrize(
  ("word", "modality", "turned"),
  [
    ("CT", "computed tomography", True),
    ("MRI-FLAIR-2D", "magnetic resonance", True),
    ("T1-Gd", "magnetic resonance", True),
    ("X-Ray", "X-Ray", False),
    ("endoscope", "endoscopy", False),
    ("OCT", "oct", False),
  ],
)
def test_names_say_modality_and_class(tmp_path, word, modality, turned):
  stem = f"amos_0004_{word}_abdomen"
  layouts.save(tmp_path / f"train/{stem}.png", layouts.picture(0))
  layouts.save(
    tmp_path / f"train_mask/{stem}_left+kidney.png", layouts.mask(LIVER)
  )
  (triplet,), faults = read(tmp_path)
  assert not faults
  assert triplet.modality == modality
  assert triplet.classes == ("left kidney",)
  image_IJC, mask_IJ = layouts.picture(0), layouts.mask(LIVER)
  if turned:  # clockwise: the first row becomes the last column
    assert triplet.masks_GIJ.shape == (1, *layouts.SHAPE[::-1])
    np.testing.assert_array_equal(triplet.image_IJC[:, -1], image_IJC[0])
    np.testing.assert_array_equal(triplet.masks_GIJ[0][:, -4], mask_IJ[3])
  else:
    np.testing.assert_array_equal(triplet.image_IJC, image_IJC)
    np.testing.assert_array_equal(triplet.masks_GIJ, [mask_IJ])


def test_sentences_become_the_description(tmp_path):
  image = "a_1_ultrasound_abdomen"
  layouts.save(tmp_path / f"set/train/{image}.png", layouts.picture(0))
  for name in ("liver", "spleen"):
    layouts.save(
      tmp_path / f"set/train_mask/{image}_{name}.png", layouts.mask(LIVER)
    )
  sentences = [
    {"file_name": f"{image}.png", "sentences": [{"raw": text}, {"raw": "x"}]}
    for text in ("liver in abdomen ultrasound", "Spleen.", "a [SEG] marker")
  ]
  (tmp_path / "set/train.json").write_text(
    json.dumps({"images": [], "annotations": [*sentences, {"id": 7}]})
  )
  (triplet,), faults = read(tmp_path / "set/train", license="CC0")
  assert triplet.description == "Liver in abdomen ultrasound. Spleen."
  assert (triplet.source, triplet.license) == ("set", "CC0")
  assert triplet.id == f"set/train/{image}.png"
  assert [fault.field for fault in faults] == ["annotation 2", "annotation 3"]


def test_splits_are_never_mixed(tmp_path):
  for split in ("train", "test"):
    layouts.save(tmp_path / f"{split}/a_CT_b.png", layouts.picture(0))
    (tmp_path / f"{split}_mask").mkdir()
  assert biomedparse.matches(tmp_path)
  assert biomedparse.matches(tmp_path / "test")
  with pytest.raises(DataError, match=r"splits test, train.*one split's"):
    opened(tmp_path)
  (triplet,), _ = read(tmp_path / "test", modality="pet")
  assert triplet.id == f"{tmp_path.name}/test/a_CT_b.png"
  with pytest.raises(DataError, match="_mask"):
    opened(tmp_path / "train_mask")


def test_what_does_not_fit_is_a_fault(tmp_path):
  layouts.save(tmp_path / "train/a_odd_b.png", layouts.picture(0))
  layouts.save(tmp_path / "train/a_CT_b.png", layouts.picture(0))
  layouts.save(tmp_path / "train_mask/z_CT_b_liver.png", layouts.mask(LIVER))
  (tmp_path / "train.json").write_text('{"annotations": [{')
  found, faults = read(tmp_path)
  assert len(found) == 1
  assert [fault.field for fault in faults] == [
    "mask",
    "descriptions",
    "modality",
  ]
