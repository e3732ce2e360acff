import io
import itertools
import pickle
import struct
import tracemalloc
import zlib

import cv2
import layouts
import numpy as np
import PIL.Image
import pytest
import tifffile

from rcmed_jax.data import images
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.pictures import regions, tiles

SHAPE = (150, 230)
TUMOR = (60, 120, 100, 190)


def tissue(shape=SHAPE):
  """Glass with noise, and tissue on the right half."""
  rng = np.random.default_rng(0)
  image_IJC = rng.integers(238, 246, (*shape, 3), np.uint8)
  half = shape[1] // 2
  image_IJC[:, half:] = layouts.picture(1, (shape[0], shape[1] - half))
  return image_IJC


def save(path, values, **how):
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".png":
    PIL.Image.fromarray(values).save(path)
  else:
    colour = "rgb" if values.ndim == 3 else "minisblack"
    tifffile.imwrite(path, values, **{"photometric": colour} | how)
  return path


def read(path, **options):
  options = {"modality": "pathology", "tile": 64} | options
  faults = []
  source = tiles.open_source(path, sources.Options(**options))
  units = list(source.units(faults.append))
  found = [
    triplet
    for unit in units
    for triplet in pickle.loads(pickle.dumps(unit)).triplets(faults.append)
  ]
  return units, found, faults


def place(triplet):
  y, x = triplet.id.rpartition("#y")[2].split("x")
  return int(y), int(x)


# Parts of pictures.

KINDS = {
  "plain strips": ("a.tif", {}),
  "strips of 7 rows": ("a.tif", {"rowsperstrip": 7}),
  "deflated tiles": ("a.tif", {"tile": (32, 48), "compression": "zlib"}),
  "differences": ("a.tif", {"compression": "zlib", "predictor": True}),
  "big-endian": ("a.tif", {"byteorder": ">", "tile": (16, 16)}),
  "BigTIFF": ("a.tif", {"bigtiff": True, "tile": (16, 16)}),
  "planes": ("a.tif", {"planarconfig": "separate"}),
  "PNG": ("a.png", {}),
}


@pytest.mark.parametrize(
  ("kind", "field"),
  [
    (kind, field)
    for kind in KINDS
    for field in ("image", "mask")
    if (kind, field) != ("planes", "mask")  # which has one
  ],
)
def test_parts_are_those_of_the_whole(tmp_path, kind, field):
  name, how = KINDS[kind]
  values = tissue() if field == "image" else tissue()[..., 0]
  if how.get("planarconfig"):
    values = np.moveaxis(values, 2, 0).copy()
  path = save(tmp_path / name, values, **how)
  if how.get("planarconfig"):
    values = np.moveaxis(values, 0, 2)
  picture = regions.open_picture(path, field)
  assert picture.shape == SHAPE
  assert picture.by_parts == (kind not in ("planes", "PNG"))
  rng = np.random.default_rng(1)
  for _ in range(30):
    top, bottom = sorted(rng.choice(SHAPE[0] + 1, 2, replace=False).tolist())
    left, right = sorted(rng.choice(SHAPE[1] + 1, 2, replace=False).tolist())
    part = slice(top, bottom), slice(left, right)
    np.testing.assert_array_equal(picture.read(*part), values[part])
  picture.close()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("predictor", [False, True])
def test_labels_of_16_bits(tmp_path, order, predictor):
  labels_IJ = np.random.default_rng(0).integers(0, 65536, SHAPE).astype("u2")
  path = save(
    tmp_path / "a.tif",
    labels_IJ,
    byteorder=order,
    compression="zlib",
    predictor=predictor,
    rowsperstrip=40,
  )
  picture = regions.open_picture(path, "mask")
  assert picture.by_parts
  found_IJ = picture.read(slice(30, 150), slice(5, 9))
  np.testing.assert_array_equal(found_IJ, labels_IJ[30:, 5:9])


def jpeg_tiff(path, image_IJC, photometric):
  """A TIFF of JPEG tiles as scanners write it, byte by byte."""
  size = 64
  rows, columns = (-(-n // size) for n in image_IJC.shape[:2])
  padded = np.zeros((rows * size, columns * size, 3), np.uint8)
  padded[: image_IJC.shape[0], : image_IJC.shape[1]] = image_IJC
  data, places = b"", []
  for r in range(rows):
    for c in range(columns):
      tile = padded[r * size : (r + 1) * size, c * size : (c + 1) * size]
      one = io.BytesIO()
      # Of RGB, Pillow's marker of Adobe is cut out: scanners write none.
      PIL.Image.fromarray(tile).save(
        one, "JPEG", quality=95, subsampling=0, keep_rgb=photometric == RGB
      )
      stream = one.getvalue()
      if photometric == RGB:
        marker = stream.index(b"\xff\xee")
        stream = stream[:marker] + stream[marker + 16 :]
      places.append((8 + len(data), len(stream)))
      data += stream
  data += b"\0" * (len(data) % 2)

  def array(values, code):
    nonlocal data
    start = 8 + len(data)
    data += struct.pack(f"<{len(values)}{code}", *values)
    return start

  offsets = array([place for place, _ in places], "I")
  counts = array([count for _, count in places], "I")
  bits = array([8, 8, 8], "H")
  tags = [
    (256, 4, 1, image_IJC.shape[1]),
    (257, 4, 1, image_IJC.shape[0]),
    (258, 3, 3, bits),
    (259, 3, 1, 7),
    (262, 3, 1, photometric),
    (277, 3, 1, 3),
    (322, 4, 1, size),
    (323, 4, 1, size),
    (324, 4, len(places), offsets),
    (325, 4, len(places), counts),
  ]
  directory = struct.pack("<H", len(tags))
  directory += b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4
  head = b"II*\0" + struct.pack("<I", 8 + len(data))
  path.write_bytes(head + data + directory)


RGB, YCBCR = 2, 6


@pytest.mark.parametrize("photometric", [RGB, YCBCR])
def test_jpeg_tiles_have_the_right_colours(tmp_path, photometric):
  image_IJC = layouts.picture(2, SHAPE)
  path = tmp_path / "a.tif"
  jpeg_tiff(path, image_IJC, photometric)
  picture = regions.open_picture(path, "image")
  assert picture.by_parts
  part = slice(30, 140), slice(50, 230)
  error = np.abs(picture.read(*part).astype(int) - image_IJC[part])
  assert error.mean() < 2


@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_strips_find_their_tables(tmp_path, grey):
  image_IJC = layouts.picture(2, SHAPE)
  values = image_IJC[..., 1] if grey else image_IJC
  path = tmp_path / "a.tif"
  PIL.Image.fromarray(values).save(path, compression="jpeg", quality=95)
  with tifffile.TiffFile(path) as file:
    assert file.pages[0].jpegtables
  picture = regions.open_picture(path, "image")
  assert picture.by_parts
  whole_IJC = np.asarray(PIL.Image.open(path).convert("RGB"))
  part = slice(30, 140), slice(50, 230)
  error = np.abs(picture.read(*part).astype(int) - whole_IJC[part])
  assert error.max() <= 4


def test_white_may_be_zero_and_a_palette_is_looked_up(tmp_path):
  grey_IJ = tissue()[..., 1]
  path = save(tmp_path / "w.tif", grey_IJ, photometric="miniswhite")
  read_IJC = regions.open_picture(path, "image").read(slice(9, 20), slice(0, 9))
  np.testing.assert_array_equal(read_IJC[..., 2], 255 - grey_IJ[9:20, :9])
  colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype("u2")
  path = save(
    tmp_path / "p.tif", grey_IJ, photometric="palette", colormap=colours * 257
  )
  read_IJC = regions.open_picture(path, "image").read(slice(9, 20), slice(0, 9))
  expected_IJC = colours[:, grey_IJ[9:20, :9]].transpose(1, 2, 0)
  np.testing.assert_array_equal(read_IJC, expected_IJC)
  labels = regions.open_picture(path, "mask").read(slice(9, 20), slice(0, 9))
  np.testing.assert_array_equal(labels, grey_IJ[9:20, :9])


def test_a_large_slide_is_never_decoded_whole(tmp_path, monkeypatch):
  side, tile = 8192, np.zeros((1024, 1024, 3), np.uint8)
  tile[:, 1000:] = 200
  path = tmp_path / "a.tif"
  tifffile.imwrite(
    path,
    iter([tile] * 64),
    shape=(side, side, 3),
    dtype=np.uint8,
    photometric="rgb",
    tile=(1024, 1024),
    compression="zlib",
  )
  monkeypatch.setattr(cv2, "imread", lambda *_: pytest.fail("decoded whole"))
  picture = regions.open_picture(path, "image")
  part = picture.read(slice(5000, 5200), slice(1924, 2048))
  assert (part[:, :100] == 0).all()
  assert (part[:, 100:] == 200).all()


@pytest.mark.parametrize(
  ("values", "field", "says"),
  [
    (np.zeros((40, 40), np.float32), "mask", "of TIFF's kind 3"),
    (np.zeros((40, 40), np.uint16), "image", "16 bits"),
    (np.zeros((40, 40, 3), np.uint8), "mask", "in colour"),
  ],
)
def test_numbers_that_say_too_little_are_refused(tmp_path, values, field, says):
  path = save(tmp_path / "a.tif", values)
  with pytest.raises(DataError, match=says):
    regions.open_picture(path, field)


def test_what_is_no_picture_is_refused(tmp_path):
  for content in (
    b"",
    b"II*\0",
    b"II*\0\xff\xff\xff\xff",
    b"\x89PNG\r\n\x1a\n",
  ):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no TIFF that can be read"):
      regions.open_picture(path, "image")
  with pytest.raises(DataError, match="cannot be opened"):
    regions.open_picture(tmp_path / "b.tif", "image")


def test_a_huge_png_is_refused_before_it_is_decoded(tmp_path):
  PIL.Image.new("1", (20_000, 13_000)).save(tmp_path / "a.png")
  with pytest.raises(DataError, match="cannot be read in parts"):
    regions.open_picture(tmp_path / "a.png", "image")


def test_a_few_bytes_do_not_blow_up(tmp_path):
  path = save(
    tmp_path / "a.tif", tissue(), rowsperstrip=150, compression="zlib"
  )
  data = bytearray(path.read_bytes())
  bomb = zlib.compress(b"\0" * 500_000_000, 9)
  with tifffile.TiffFile(path) as file:
    tags = file.pages[0].tags
    offset, count = tags["StripOffsets"], tags["StripByteCounts"]
    order = file.byteorder
  struct.pack_into(f"{order}I", data, offset.valueoffset, len(data))
  struct.pack_into(f"{order}I", data, count.valueoffset, len(bomb))
  path.write_bytes(data + bomb)
  picture = regions.open_picture(path, "image")
  tracemalloc.start()
  part = picture.read(slice(0, 150), slice(0, 230))
  assert tracemalloc.get_traced_memory()[1] < 5_000_000
  tracemalloc.stop()
  assert not part.any()


# Tiles.


@pytest.mark.parametrize("side", [16, 64, 65, 100, 128, 129, 500])
@pytest.mark.parametrize("overlap", [0, 1, 20, 63])
def test_tiles_cover_a_side_and_stay_inside(side, overlap):
  found = tiles.starts(side, 64, overlap)
  covered = np.zeros(side, int)
  for start in found:
    assert 0 <= start <= max(side - 64, 0)
    covered[start : start + 64] += 1
  assert covered.min() >= 1
  assert found == sorted(set(found))
  for one, other in itertools.pairwise(found):
    assert other - one <= 64 - overlap


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_tiles_hold_the_slides_pixels_and_masks(tmp_path, name):
  how = {"tile": (32, 32), "compression": "zlib"} if name == "a.tif" else {}
  save(tmp_path / "slides" / name, tissue(), **how)
  mask_IJ = layouts.mask(TUMOR, SHAPE)
  save(tmp_path / "masks/tumor" / name, mask_IJ * np.uint8(255), **how)
  units, found, faults = read(tmp_path, tile_overlap=10, license="CC0")
  assert len(units) == (3 if name == "a.tif" else 1)
  assert all(isinstance(f, tiles.EmptyTilesError) for f in faults)
  seen_IJ = np.zeros(SHAPE, int)
  for triplet in found:
    y, x = place(triplet)
    part = slice(y, y + 64), slice(x, x + 64)
    np.testing.assert_array_equal(triplet.image_IJC, tissue()[part])
    here = mask_IJ[part].any()
    assert triplet.classes == (("tumor",) if here else ())
    if here:
      np.testing.assert_array_equal(triplet.masks_GIJ, [mask_IJ[part]])
    seen_IJ[part] += 1
  assert (seen_IJ[:, SHAPE[1] // 2 :] > 0).all()  # all of the tissue
  assert (seen_IJ[:, :50] == 0).all()  # and no glass
  left_out = sum(fault.count for fault in faults)
  assert len(found) + left_out == 3 * 5
  assert {t.group for t in found} == {f"{tmp_path.name}/a"}
  assert {t.license for t in found} == {"CC0"}
  _, kept, faults = read(tmp_path, tile_overlap=10, empty_slices="keep")
  assert len(kept) == 15
  assert not faults


@pytest.mark.parametrize("colour", [(243, 242, 244), (12, 10, 11)])
def test_noise_and_dust_are_nothing(colour):
  rng = np.random.default_rng(0)
  image = rng.normal(colour, 4, (512, 512, 3))
  for y, x in rng.integers(0, 500, (3, 2)):
    image[y : y + 6, x : x + 6] = 128
  image_IJC = np.clip(image, 0, 255).astype(np.uint8)
  assert tiles.is_empty(image_IJC)
  image_IJC[200:240, 200:260] = 128
  assert not tiles.is_empty(image_IJC)


def test_real_tissue_is_something(shared):
  image_IJC = images.read(
    shared / "data/real9/images/pathology--rcmed_page--09.png"
  )
  parts = [
    image_IJC[y : y + 128, x : x + 128]
    for y in range(0, 1024, 128)
    for x in range(0, 1024, 128)
  ]
  assert not any(map(tiles.is_empty, parts))
  # Also as pale as a weak stain.
  pale = [(255 - (255 - part) // 3).astype(np.uint8) for part in parts]
  assert not any(map(tiles.is_empty, pale))


def test_a_mask_on_glass_keeps_its_tile(tmp_path):
  save(tmp_path / "slides/a.tif", tissue())
  mask_IJ = layouts.mask((5, 9, 5, 9), SHAPE) * np.uint8(1)
  save(tmp_path / "masks/a.tif", mask_IJ)
  _, found, _ = read(tmp_path, label_names=((1, "pen mark"),))
  (marked,) = [t for t in found if t.classes]
  assert place(marked) == (0, 0)
  assert marked.classes == ("pen mark",)
  assert marked.masks_GIJ.sum() == 16
  _, _, faults = read(tmp_path)
  assert [f.message for f in faults if f.field == "labels"] == [
    "nothing names the values 1"
  ]


def test_faulty_masks_leave_their_class_out(tmp_path):
  save(tmp_path / "slides/a.tif", tissue())
  whole_IJ = np.ones(SHAPE, np.uint8)
  save(tmp_path / "masks/small/a.tif", whole_IJ[1:])
  save(tmp_path / "masks/sound/a.tif", whole_IJ)
  save(tmp_path / "masks/orphan/b.tif", whole_IJ)
  units, found, faults = read(tmp_path)
  assert len(found) == 12
  assert {t.classes for t in found} == {("sound",)}
  assert sorted(fault.message for fault in faults) == [
    "it has 149 x 230 pixels, its slide 150 x 230",
    "no usable image is named b",
  ]
  assert [unit.id for unit in units] == [
    f"{tmp_path.name}/a#y{y:06d}" for y in (0, 64, 86)
  ]


def test_a_microscopes_spacing_is_kept_and_a_printers_is_not(tmp_path):
  (tmp_path / "masks").mkdir()
  for spacing_um, expected in ((0.25, (0.00025, 0.00025)), (88.2, None)):
    save(
      tmp_path / "slides/a.tif",
      tissue(),
      resolution=(1e4 / spacing_um, 1e4 / spacing_um),
      resolutionunit="CENTIMETER",
    )
    _, found, _ = read(tmp_path)
    spacing_mm = found[0].spacing_mm
    assert spacing_mm == (expected and pytest.approx(expected, rel=1e-5))


def test_a_damaged_part_takes_only_its_row(tmp_path):
  path = save(
    tmp_path / "slides/a.tif", tissue(), rowsperstrip=64, compression="zlib"
  )
  (tmp_path / "masks").mkdir()
  with tifffile.TiffFile(path) as file:
    start = file.pages[0].dataoffsets[1]
  data = bytearray(path.read_bytes())
  data[start : start + 40] = b"\0" * 40
  path.write_bytes(data)
  _, found, faults = read(tmp_path, tile=50)
  assert {place(t)[0] for t in found} == {0}
  assert len([f for f in faults if f.field == "image"]) == 2


def test_options_that_make_no_tiles_are_refused():
  with pytest.raises(ValueError, match="tile_overlap=64: expected 0 to less"):
    sources.Options(tile=64, tile_overlap=64)
