"""A patient of marks, stored in any orientation, for tests of volumes."""

import itertools

import nibabel
import numpy as np

CODES = [
  "".join(letters)
  for order in itertools.permutations(("RL", "AP", "SI"))
  for letters in itertools.product(*order)
]

SHAPE = (20, 24, 18)  # voxels to the right, front and head
SPACING = (1.5, 0.75, 4.0)


def patient() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Image, labels and affine in RAS: 1 lies on the right, 2 on the left.

  The image holds noise and is 1000 more in label 1, 2000 in label 2.
  """
  labels = np.zeros(SHAPE, np.uint8)
  labels[13:18, 14:20, 4:9] = 1
  labels[2:6, 5:9, 6:14] = 2
  rng = np.random.default_rng(0)
  image = rng.integers(1, 100, SHAPE).astype(np.int16)
  image += 1000 * labels.astype(np.int16)
  affine = np.diag([*SPACING, 1.0])
  affine[:3, 3] = -20, 10, -60
  return image, labels, affine


def turned(
  voxels: np.ndarray, affine: np.ndarray, code: str
) -> tuple[np.ndarray, np.ndarray]:
  """Voxels in RAS and their affine in another orientation, by nibabel."""
  turn = nibabel.orientations.ornt_transform(
    nibabel.orientations.axcodes2ornt("RAS"),
    nibabel.orientations.axcodes2ornt(code),
  )
  back = nibabel.orientations.inv_ornt_aff(turn, voxels.shape)
  return nibabel.orientations.apply_orientation(voxels, turn), affine @ back


def axial(voxels: np.ndarray) -> np.ndarray:
  """The patient's axial slices, feet first, as a radiologist sees them."""
  return voxels[::-1, ::-1].transpose(2, 1, 0)


def read(source) -> tuple[list, list]:
  """All triplets of a source, and all faults."""
  faults = []
  units = list(source.units(faults.append))
  assert len({unit.id for unit in units}) == len(units)
  triplets = [t for unit in units for t in unit.triplets(faults.append)]
  assert len({t.id for t in triplets}) == len(triplets)
  return triplets, faults
