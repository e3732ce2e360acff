import base64
import re

import cv2
import layouts
import numpy as np
import pytest

from rcmed_jax.ingest import formats, sources
from rcmed_jax.ingest.checking import sheet
from rcmed_jax.ingest.pictures import folder, index_file

LIVER, SPLEEN = (3, 20, 4, 15), (22, 30, 4, 15)


def opened(path):
  source = index_file.open_source(path, sources.Options())
  return [("train", path, source)]


def pictures(page):
  """The pictures in a page, decoded."""
  found = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
  return [
    cv2.imdecode(np.frombuffer(base64.b64decode(one), np.uint8), 1)[..., ::-1]
    for one in found
  ]


def test_rare_tasks_are_shown_as_often_as_frequent_ones(tmp_path):
  layout = {f"ct--a--{n}.png": {"liver": LIVER} for n in range(40)}
  layout |= {f"mr--a--{n}.png": {"spleen": LIVER} for n in range(2)}
  layout |= {"x--a--1.png": {}}
  path = layouts.index(tmp_path, layout)
  drawn = sheet.draw(opened(path), 5, seed=0)
  tasks = [(t.modality, t.classes) for _, t in drawn.triplets]
  assert drawn.units == 43
  assert len(tasks) == 5
  assert tasks.count(("magnetic resonance", ("spleen",))) == 2
  assert tasks.count(("X-Ray", ())) == 1
  ids = [t.id for _, t in drawn.triplets]
  assert len(set(ids)) == 5
  assert ids == [t.id for _, t in sheet.draw(opened(path), 5, 0).triplets]
  others = [
    [t.id for _, t in sheet.draw(opened(path), 5, seed).triplets]
    for seed in range(1, 6)
  ]
  assert any(other != ids for other in others)


def test_faulty_pictures_give_way_to_others_and_are_told(tmp_path):
  layout = {f"ct--a--{n}.png": {"liver": LIVER} for n in range(4)}
  path = layouts.index(tmp_path, layout)
  for number in (0, 1, 2):
    (tmp_path / f"ct--a--{number}.png").write_bytes(b"")
  drawn = sheet.draw(opened(path), 2, seed=0)
  assert [t.id for _, t in drawn.triplets] == ["ct--a--3.png"]
  assert len(drawn.faults) == 3
  page = sheet.write(tmp_path / "a.html", drawn).read_text()
  assert "ct--a--1.png" in page
  assert "this is no image" in page


def test_outlines_lie_on_the_edge_of_their_masks():
  image_IJC = np.full((200, 100, 3), 90, np.uint8)
  masks_GIJ = np.zeros((2, 200, 100), bool)
  masks_GIJ[0, 20:60, 0:30] = True  # at the picture's edge
  masks_GIJ[1, 100, 50] = True  # one pixel
  small_IJC = sheet.outlined(image_IJC, masks_GIJ)
  assert small_IJC.shape == image_IJC.shape
  drawn_IJ = (small_IJC == sheet.COLOURS[0]).all(-1)
  expected_IJ = masks_GIJ[0].copy()
  expected_IJ[21:59, 1:29] = False
  np.testing.assert_array_equal(drawn_IJ, expected_IJ)
  assert tuple(small_IJC[100, 50]) == sheet.COLOURS[1]
  assert (image_IJC == 90).all()


def test_a_large_picture_keeps_its_smallest_target():
  masks_GIJ = np.zeros((1, 2000, 3000), bool)
  masks_GIJ[0, 1000:1003, 1500:1503] = True
  small_IJC = sheet.outlined(np.zeros((2000, 3000, 3), np.uint8), masks_GIJ)
  assert small_IJC.shape == (171, 256, 3)
  rows, columns = np.nonzero((small_IJC == sheet.COLOURS[0]).all(-1))
  assert len(rows)
  np.testing.assert_allclose([rows.mean(), columns.mean()], [85, 128], atol=1)


def test_the_page_shows_pictures_masks_and_what_is_known(tmp_path):
  layouts.save(tmp_path / "images/<b>.png", np.full((64, 64, 3), 90, np.uint8))
  layouts.save(
    tmp_path / "masks/left_kidney/<b>.png",
    layouts.mask((9, 40, 9, 40), (64, 64)),
  )
  options = sources.Options(modality="pet")
  found = [("test", tmp_path, folder.open_source(tmp_path, options))]
  page = sheet.write(tmp_path / "a.html", sheet.draw(found, 9, 0)).read_text()
  (shown_IJC,) = pictures(page)
  assert shown_IJC.shape == (64, 64, 3)
  # The colour of the outline, through JPEG; and none in the corner.
  edge, grey = shown_IJC[9, 20].astype(int), shown_IJC[60, 60].astype(int)
  assert edge[2] - edge[0] > 60  # cyan
  assert np.abs(grey - 90).max() < 12
  for word in ("left kidney", "pet", "64 x 64; test", "images/&lt;b&gt;.png"):
    assert word in page
  assert "<b>.png" not in page


def test_a_volume_is_shown_from_end_to_end(shared):
  path = shared / "data/liver_mr"
  options = sources.Options(
    modality="magnetic resonance",
    assume_same_grid=True,
    label_names=((1, "liver"),),
    key=b"k" * 32,
  )
  source = formats.open_source(path, options)
  drawn = sheet.draw([("train", path, source)], 60, seed=0)
  assert not drawn.faults
  slices = [int(t.id[-4:]) for _, t in drawn.triplets]
  assert len(slices) == sheet.OF_ONE_UNIT
  assert slices == sorted(slices)
  assert slices[-1] - slices[0] >= 20
  gaps = np.diff(slices)
  assert gaps.max() - gaps.min() <= 2


def test_real_pictures_and_their_masks(shared, tmp_path):
  path = shared / "data/real9"
  source = formats.open_source(path, sources.Options())
  drawn = sheet.draw([("train", path, source)], 60, seed=0)
  assert len(drawn.triplets) == 10
  page = sheet.write(tmp_path / "a.html", drawn)
  assert len(pictures(page.read_text())) == 10
  assert page.stat().st_size < 500_000


@pytest.mark.parametrize("count", [1, 3])
def test_no_more_than_asked_for(tmp_path, count):
  path = layouts.index(
    tmp_path, {f"ct--a--{n}.png": {"liver": LIVER} for n in range(4)}
  )
  assert len(sheet.draw(opened(path), count, 0).triplets) == count
