import json
import pathlib

import layouts
import numpy as np
import PIL.Image
import pytest

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.pictures import folder

LIVER, SPLEEN = (3, 20, 4, 15), (22, 30, 4, 15)


def read(path, **options):
  """Triplets by id, and faults."""
  options.setdefault("modality", "pet")
  faults = []
  source = folder.open_source(path, sources.Options(**options))
  found = [
    triplet
    for unit in source.units(faults.append)
    for triplet in unit.triplets(faults.append)
  ]
  return {triplet.id: triplet for triplet in found}, faults


def test_masks_by_class(tmp_path):
  layouts.save(tmp_path / "images/a.png", layouts.picture(0))
  layouts.save(tmp_path / "images/deep/b.tif", layouts.picture(1))
  layouts.save(tmp_path / "masks/left_kidney/a.png", layouts.mask(LIVER))
  layouts.save(tmp_path / "masks/spleen/a.tif", layouts.mask(SPLEEN))
  layouts.save(tmp_path / "masks/spleen/deep/b.png", layouts.mask(LIVER))
  (tmp_path / "images/.DS_Store").write_text("not data")
  found, faults = read(tmp_path, license="CC0")
  assert not faults
  assert list(found) == ["images/a.png", "images/deep/b.tif"]
  first, second = found.values()
  assert first.classes == ("left kidney", "spleen")
  np.testing.assert_array_equal(
    first.masks_GIJ, [layouts.mask(LIVER), layouts.mask(SPLEEN)]
  )
  np.testing.assert_array_equal(second.image_IJC, layouts.picture(1))
  assert second.classes == ("spleen",)
  assert (first.modality, first.source, first.license) == (
    "pet",
    tmp_path.name,
    "CC0",
  )


@pytest.mark.parametrize("told", ["file", "option"])
@pytest.mark.parametrize("palette", [False, True])
def test_label_maps(tmp_path, told, palette):
  layouts.save(tmp_path / "images/a.png", layouts.picture(0))
  labels_IJ = np.zeros(layouts.SHAPE, np.uint8)
  labels_IJ[layouts.mask(LIVER)] = 1
  labels_IJ[layouts.mask(SPLEEN)] = 7
  image = PIL.Image.fromarray(labels_IJ)
  if palette:  # in which 1 is black and 7 white
    image = image.convert("P")
    image.putpalette([255, 0, 0] + [0, 0, 0] * 6 + [255, 255, 255])
    image.putdata(labels_IJ.ravel().tolist())
  (tmp_path / "masks").mkdir()
  image.save(tmp_path / "masks/a.png")
  names = {1: "liver", 7: "spleen", 9: "heart"}
  options = {}
  if told == "file":
    (tmp_path / "labels.json").write_text(json.dumps(names))
  else:
    options["label_names"] = tuple(names.items())
  found, faults = read(tmp_path, **options)
  assert not faults
  triplet = found["images/a.png"]
  assert triplet.classes == ("liver", "spleen")
  np.testing.assert_array_equal(
    triplet.masks_GIJ, [layouts.mask(LIVER), layouts.mask(SPLEEN)]
  )


def test_values_without_a_name_are_named(tmp_path):
  layouts.save(tmp_path / "images/a.png", layouts.picture(0))
  labels_IJ = layouts.mask(LIVER) * np.uint8(3)
  labels_IJ[0, 0] = 5
  layouts.save(tmp_path / "masks/a.png", labels_IJ)
  found, (fault,) = read(tmp_path)
  assert not found
  assert "nothing names the values 3, 5" in fault.message
  assert '--label "3=NAME"' in fault.remedy
  found, (fault,) = read(tmp_path, label_names=((3, "liver"),))
  assert found["images/a.png"].classes == ("liver",)
  assert "the values 5" in fault.message


def test_every_file_is_read_or_a_fault(tmp_path):
  layouts.save(tmp_path / "images/a.png", layouts.picture(0))
  layouts.save(tmp_path / "images/twice.png", layouts.picture(1))
  layouts.save(tmp_path / "images/twice.tif", layouts.picture(2))
  (tmp_path / "images/notes.txt").write_text("notes")
  layouts.save(tmp_path / "masks/liver/a.png", layouts.mask(LIVER))
  layouts.save(tmp_path / "masks/liver/nobody.png", layouts.mask(LIVER))
  layouts.save(tmp_path / "masks/[SEG]/a.png", layouts.mask(LIVER))
  layouts.save(tmp_path / "masks/colours.png", layouts.picture(0))
  found, faults = read(tmp_path)
  assert list(found) == ["images/a.png"]
  assert sorted(
    pathlib.Path(fault.path).relative_to(tmp_path).as_posix()
    for fault in faults
  ) == [
    "images/notes.txt",
    "images/twice.png",
    "images/twice.tif",
    "masks/[SEG]",
    "masks/colours.png",
    "masks/liver/nobody.png",
  ]


def test_colours_are_no_label_map(tmp_path):
  layouts.save(tmp_path / "images/a.png", layouts.picture(0))
  layouts.save(tmp_path / "masks/a.png", layouts.picture(0))
  found, (fault,) = read(tmp_path)
  assert not found
  assert "one number a pixel" in fault.message


def test_modalities_come_from_names_or_are_asked_for(tmp_path):
  layouts.save(tmp_path / "images/ct--1.png", layouts.picture(0))
  layouts.save(tmp_path / "images/other.png", layouts.picture(0))
  (tmp_path / "masks").mkdir()
  found, (fault,) = read(tmp_path, modality="")
  assert found["images/ct--1.png"].modality == "computed tomography"
  assert fault.path.endswith("other.png")
  assert "--modality" in fault.remedy


def test_what_is_not_there_is_said(tmp_path):
  (tmp_path / "images").mkdir()
  with pytest.raises(DataError, match="no folder masks"):
    folder.open_source(tmp_path, sources.Options())
  (tmp_path / "masks").mkdir()
  with pytest.raises(DataError, match="holds no image"):
    read(tmp_path)
  (tmp_path / "labels.json").write_text('{"one": "liver"}')
  with pytest.raises(DataError, match=r'labels.json.*Expected \{"1": "liver"'):
    folder.open_source(tmp_path, sources.Options())
