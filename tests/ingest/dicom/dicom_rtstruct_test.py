import dicom_files
import numpy as np
import pytest
from skimage import measure
import volume_files

from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import dicom, dicom_rtstruct

CLOSED = "CLOSED_PLANAR"


def circle(row, column, radius, points=40):
  angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
  return np.stack(
    [row + radius * np.sin(angle), column + radius * np.cos(angle)], -1
  )


def star(rng, points=15):
  """A polygon without crossings, jagged, at no pixel's centre."""
  angle = np.sort(rng.uniform(0, 2 * np.pi, points))
  radius = rng.uniform(3, 14, points)
  return np.stack(
    [15.3 + radius * np.sin(angle), 17.7 + radius * np.cos(angle)], -1
  )


@pytest.mark.parametrize("seed", range(20))
def test_one_polygon_is_filled_as_by_scikit_image(seed):
  polygon = star(np.random.default_rng(seed))
  expected_IJ = measure.grid_points_in_poly((30, 34), polygon)
  np.testing.assert_array_equal(
    dicom_rtstruct.fill([polygon], (30, 34)), expected_IJ
  )


def test_inner_contours_are_holes_and_islands():
  polygons = [circle(20.1, 20.2, r) for r in (15, 10, 4)]
  discs = [measure.grid_points_in_poly((40, 40), p) for p in polygons]
  np.testing.assert_array_equal(
    dicom_rtstruct.fill(polygons, (40, 40)), discs[0] ^ discs[1] ^ discs[2]
  )


def test_a_keyhole_is_a_hole():
  outer, inner = circle(20.1, 20.2, 15), circle(20.1, 20.2, 6)
  keyhole = np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])
  np.testing.assert_array_equal(
    dicom_rtstruct.fill([keyhole], (40, 40)),
    dicom_rtstruct.fill([outer, inner], (40, 40)),
  )


def test_a_square_on_pixel_centres_holds_half_its_border():
  # By hand: rows 2 and 3, columns 3 to 5; upper ends are not inside.
  square = np.array([[2, 3], [2, 6], [4, 6], [4, 3]], float)
  expected_IJ = np.zeros((6, 8), bool)
  expected_IJ[2:4, 3:6] = True
  for turn in range(4):
    np.testing.assert_array_equal(
      dicom_rtstruct.fill([np.roll(square, turn, 0)], (6, 8)), expected_IJ
    )


def test_contours_beyond_the_picture_are_cut():
  expected_IJ = measure.grid_points_in_poly((20, 20), circle(3.3, 18.1, 9))
  np.testing.assert_array_equal(
    dicom_rtstruct.fill([circle(3.3, 18.1, 9)], (20, 20)), expected_IJ
  )
  assert not dicom_rtstruct.fill([circle(99, 99, 9)], (20, 20)).any()


# Files.


def patient(code, degrees=0):
  image, _, affine = volume_files.patient()
  angle = np.radians(degrees)
  turn = np.eye(4)
  turn[1:3, 1:3] = [
    [np.cos(angle), -np.sin(angle)],
    [np.sin(angle), np.cos(angle)],
  ]
  voxels, affine = volume_files.turned(image, affine, code)
  return voxels, turn @ affine


def in_mm(affine, z, points_N2):
  """Points of a slice as a structure set has them, in DICOM's mm."""
  places = np.column_stack(
    [np.full(len(points_N2), z), points_N2, np.ones(len(points_N2))]
  )
  return (places @ affine.T)[:, :3] * (-1, -1, 1)


def write(folder, regions, code="SPL", degrees=0):
  """Regions: name -> [(slice as stored, kind, points in rows and columns)]."""
  voxels, affine = patient(code, degrees)
  datasets = dicom_files.series(voxels, affine)
  dicom_files.save_series(datasets, folder)
  made = dicom_files.structures(
    datasets,
    [
      (name, [(kind, in_mm(affine, z, points)) for z, kind, points in contours])
      for name, contours in regions.items()
    ],
  )
  dicom_files.save(made, folder / "rtstruct.dcm")
  return voxels


def read(path, **options):
  return volume_files.read(dicom.open_source(path, sources.Options(**options)))


@pytest.mark.parametrize("degrees", [0, 12])
@pytest.mark.parametrize("code", volume_files.CODES[::12])
def test_contours_land_on_their_slices(tmp_path, code, degrees):
  ring = [
    (5, CLOSED, circle(8.2, 9.1, 6)),
    (5, CLOSED, circle(8.2, 9.1, 3)),
    (6, CLOSED, circle(8.2, 9.1, 5)),
  ]
  voxels = write(
    tmp_path,
    {"ring_one": ring, "spot": [(6, CLOSED, circle(4.1, 12.3, 2))]},
    code,
    degrees,
  )
  axis = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal"}
  triplets, _ = read(tmp_path, axis=axis.get(code[0], "sagittal"))
  assert len(triplets) == 2
  # The masks in the order of the files, turned as the image was.
  shape = voxels.shape
  masks = {name: np.zeros(shape, bool) for name in ("ring one", "spot")}
  for z, name, parts in (
    (5, "ring one", [circle(8.2, 9.1, 6), circle(8.2, 9.1, 3)]),
    (6, "ring one", [circle(8.2, 9.1, 5)]),
    (6, "spot", [circle(4.1, 12.3, 2)]),
  ):
    for part in parts:
      masks[name][z] ^= measure.grid_points_in_poly(shape[1:], part)
  found = {
    name: sum(int(m.sum()) for m in mask) for name, mask in masks.items()
  }
  told = dict.fromkeys(masks, 0)
  for triplet in triplets:
    for name, mask_IJ in zip(triplet.classes, triplet.masks_GIJ, strict=True):
      told[name] += int(mask_IJ.sum())
      # Slice 5 has the ring alone, slice 6 the disc and the spot.
      z = 5 if len(triplet.classes) == 1 else 6
      expected_IJ = masks[name][z]
      turns = [expected_IJ, expected_IJ[::-1], expected_IJ[:, ::-1]]
      turns += [expected_IJ[::-1, ::-1]]
      turns += [turned_IJ.T for turned_IJ in turns]
      matching = [t for t in turns if np.array_equal(t, mask_IJ)]
      assert matching
  assert told == found


def test_masks_lie_on_the_same_pixels_as_the_picture(tmp_path):
  """Bright voxels are outlined by hand; the mask covers them, turned or not."""
  image, labels, affine = volume_files.patient()
  for code in ("SPL", "SAR", "IPR", "SLP"):
    voxels, turned = volume_files.turned(image, affine, code)
    marks, _ = volume_files.turned(labels, affine, code)
    datasets = dicom_files.series(voxels, turned)
    contours = []
    for z, marks_IJ in enumerate(marks):
      if (marks_IJ == 1).any():
        rows, columns = np.nonzero(marks_IJ == 1)
        low, high = rows.min() - 0.5, rows.max() + 0.5
        left, right = columns.min() - 0.5, columns.max() + 0.5
        square = np.array(
          [[low, left], [low, right], [high, right], [high, left]]
        )
        contours.append((CLOSED, in_mm(turned, z, square)))
    folder = tmp_path / code
    dicom_files.save_series(datasets, folder)
    dicom_files.save(
      dicom_files.structures(datasets, [("kidney", contours)]),
      folder / "rs.dcm",
    )
    triplets, _ = read(folder)
    labels_ZIJ = volume_files.axial(labels)
    assert len(triplets) == (labels_ZIJ == 1).any((1, 2)).sum()
    for triplet in triplets:
      z = int(triplet.id[-4:])
      np.testing.assert_array_equal(triplet.masks_GIJ[0], labels_ZIJ[z] == 1)


@pytest.mark.parametrize(
  ("contour", "reason"),
  [
    ((5, "POINT", np.array([[3.0, 4.0]])), "enclose nothing"),
    ((5, "OPEN_PLANAR", circle(8, 9, 4)), "enclose nothing"),
    ((5, CLOSED, np.array([[3.0, 4.0], [5.0, 6.0]])), "fewer than three"),
    ((5.4, CLOSED, circle(8, 9, 4)), "between slices"),
    ((40, CLOSED, circle(8, 9, 4)), "beyond"),
    ((-3, CLOSED, circle(8, 9, 4)), "beyond"),
  ],
)
def test_a_region_that_cannot_be_drawn_is_left_out(tmp_path, contour, reason):
  good = (5, CLOSED, circle(8.2, 9.1, 6))
  write(tmp_path, {"bad": [good, contour], "good": [good]})
  triplets, faults = read(tmp_path)
  assert {t.classes for t in triplets} == {("good",)}
  told = [f for f in faults if f.field == "mask"]
  assert len(told) == 1
  assert reason in str(told[0])
