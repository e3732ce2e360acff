import json
import pickle

import layouts
import numpy as np
from pycocotools import mask as reference
import pytest

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.pictures import coco, coco_masks, rle

SHAPE = layouts.SHAPE
LIVER, SPLEEN = (3, 20, 4, 15), (22, 30, 4, 15)


def uncompressed(mask_IJ):
  """Runs by counting, pixel by pixel, down the columns."""
  runs, value = [0], False
  for pixel in mask_IJ.ravel(order="F"):
    if pixel != value:
      runs.append(0)
      value = pixel
    runs[-1] += 1
  return {"size": list(mask_IJ.shape), "counts": runs}


def compressed(mask_IJ):
  found = reference.encode(np.asfortranarray(mask_IJ, np.uint8))
  return {"size": list(mask_IJ.shape), "counts": found["counts"].decode()}


def file(folder, annotations, **more):
  """An index of two images; `annotations` are (image, category, region)."""
  for number in (1, 2):
    layouts.save(folder / f"images/ct--{number}.png", layouts.picture(number))
  content = {
    "info": {"year": 2026},
    "licenses": [{"id": 4, "name": "CC-BY-4.0"}],
    "images": [
      {
        "id": number,
        "file_name": f"ct--{number}.png",
        "height": SHAPE[0],
        "width": SHAPE[1],
        "license": 4,
      }
      for number in (1, 2)
    ],
    "annotations": [
      {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": region,
        "iscrowd": int(isinstance(region, dict)),
      }
      for number, (image, category, region) in enumerate(annotations)
    ],
    "categories": [{"id": 1, "name": "liver"}, {"id": 2, "name": "spleen"}],
  }
  path = folder / "annotations" / "instances_train.json"
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(content | more))
  return path


def read(path, **options):
  faults = []
  source = coco.open_source(path, sources.Options(**options))
  found = [
    triplet
    for unit in source.units(faults.append)
    for triplet in pickle.loads(pickle.dumps(unit)).triplets(faults.append)
  ]
  return found, faults


def test_regions_of_every_kind(tmp_path):
  # A polygon whose corners lie on the corners of pixels covers them exactly.
  polygon = [[4, 3, 15, 3, 15, 20, 4, 20]]
  path = file(
    tmp_path,
    [
      (2, 1, uncompressed(layouts.mask(LIVER))),
      (1, 1, polygon),
      (1, 2, compressed(layouts.mask(SPLEEN))),
      (1, 1, uncompressed(layouts.mask(SPLEEN))),
    ],
  )
  (first, second), faults = read(path)
  assert not faults
  assert first.classes == ("liver", "spleen")
  liver_IJ, spleen_IJ = layouts.mask(LIVER), layouts.mask(SPLEEN)
  np.testing.assert_array_equal(first.masks_GIJ[0], liver_IJ | spleen_IJ)
  np.testing.assert_array_equal(first.masks_GIJ[1], spleen_IJ)
  np.testing.assert_array_equal(second.masks_GIJ, [liver_IJ])
  np.testing.assert_array_equal(first.image_IJC, layouts.picture(1))
  assert (first.license, first.modality) == ("CC-BY-4.0", "computed tomography")
  assert (first.id, first.source) == ("ct--1.png", "instances_train")


def test_polygons_fall_where_coco_draws_them():
  rng = np.random.default_rng(0)
  for _ in range(50):
    polygons = rng.uniform(-5, 45, (2, 8)).round(2).tolist()
    runs = reference.merge(reference.frPyObjects(polygons, *SHAPE))
    expected_IJ = reference.decode(runs).astype(bool)
    if expected_IJ.any():
      found_IJ = coco_masks.decode(polygons, SHAPE)
      np.testing.assert_array_equal(found_IJ, expected_IJ)


def test_compressed_runs_against_the_library():
  rng = np.random.default_rng(0)
  for _ in range(300):
    shape = tuple(rng.integers(1, 90, 2).tolist())
    mask_IJ = rng.random(shape) < rng.random() ** 3
    text = compressed(mask_IJ)["counts"]
    assert rle.runs_of(text) == uncompressed(mask_IJ)["counts"]
    np.testing.assert_array_equal(rle.decode(rle.runs_of(text), shape), mask_IJ)


@pytest.mark.parametrize(
  ("region", "says"),
  [
    (None, "neither polygons nor runs"),
    ([], "neither polygons nor runs"),
    ([[1, 1, 5, 5]], "less than three corners"),
    ([[1, 1, 5, 5, 9]], "less than three corners"),
    ([[1, 1, 5, 5, 9, "x"]], "a corner lies at 'x'"),
    ([[1, 1, 5, 5, 9, 1e9]], "far outside"),
    ([[50, 50, 55, 50, 55, 55]], "it is empty"),
    ({"size": [30, 40], "counts": [1200]}, "of an image of"),
    ({"size": [40, 30], "counts": [600]}, "600 pixels, the image has 1200"),
    ({"size": [40, 30], "counts": [-1, 1201]}, "no lengths"),
    ({"size": [40, 30], "counts": [10**15]}, "no lengths"),
    ({"size": [40, 30], "counts": [1200]}, "it is empty"),
    ({"size": [40, 30], "counts": "\u1234"}, "stands for nothing"),
    ({"size": [40, 30], "counts": "oooooooooooo"}, "stands for nothing"),
    ({"size": [40, 30], "counts": "P"}, "breaks off"),
    ({"size": [40, 30]}, "neither a list nor a text"),
  ],
)
def test_a_region_that_cannot_be_drawn_leaves_its_class_out(
  tmp_path, region, says
):
  with pytest.raises(ValueError, match=says):
    coco_masks.decode(region, SHAPE)
  sound = uncompressed(layouts.mask(LIVER))
  path = file(tmp_path, [(1, 1, sound), (1, 1, region), (1, 2, sound)])
  (first, _), (fault,) = read(path)
  assert first.classes == ("spleen",)
  assert fault.field == "region of liver"


def test_entries_that_fit_nothing_are_faults(tmp_path):
  sound = uncompressed(layouts.mask(LIVER))
  path = file(
    tmp_path,
    [(1, 1, sound), (9, 1, sound), (1, 9, sound), ({}, [], sound)],
    images=[
      {"id": 1, "file_name": "ct--1.png", "height": 40, "width": 30},
      {"id": 1, "file_name": "ct--2.png", "height": 40, "width": 30},
      {"id": 3, "file_name": "ct--3.png", "height": 40, "width": 30},
      {"id": 4, "file_name": "ct--2.png", "height": 30, "width": 40},
      {"id": 5, "file_name": "other.png", "height": 30, "width": 40},
      {"id": 6, "file_name": None, "height": 30, "width": 40},
      "no object",
    ],
  )
  (only,), faults = read(path)
  assert (only.id, only.classes, only.license) == (
    "ct--1.png",
    ("liver",),
    None,
  )
  assert sorted(fault.field for fault in faults) == [
    "annotation 1",
    "annotation 2",
    "annotation 3",
    "image",  # 3: there is no such file
    "image",  # 4: of another size
    "image 1",
    "image 5",
    "image 6",
    "modality",
  ]


def test_a_file_that_breaks_off_is_refused_whole(tmp_path):
  path = file(tmp_path, [(1, 1, uncompressed(layouts.mask(LIVER)))])
  path.write_text(path.read_text()[:-50])
  with pytest.raises(DataError, match="not JSON within 'categories'"):
    read(path)


def test_a_file_without_images_says_what_is_expected(tmp_path):
  path = tmp_path / "a.json"
  path.write_text('{"annotations": []}')
  with pytest.raises(DataError, match="names no image"):
    read(path)
