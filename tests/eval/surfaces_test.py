"""NSD and HD95 against the plain SciPy formulation and against MONAI."""

import itertools
import time

import numpy as np
import pytest
import scipy.ndimage

from rcmed_jax.eval import surfaces

CASES = 500
TOLERANCES = (0.0, 0.5, 1.23, 4.0)


def plain(pred, ref, spacing):
  """Distances of both sides: erosions and transforms of whole images."""
  edges = [mask & ~scipy.ndimage.binary_erosion(mask) for mask in (pred, ref)]
  return [
    scipy.ndimage.distance_transform_edt(~theirs, sampling=spacing)[ours]
    for ours, theirs in (edges, edges[::-1])
  ]


def random_case(seed):
  """Two masks and a spacing: blobs, specks, boxes or next to nothing."""
  random = np.random.default_rng(seed)
  axes = 2 + (seed % 3 == 2)
  shape = random.integers(1, 48 if axes == 2 else 20, axes)
  noise = random.normal(size=(2, *shape))
  kind = seed % 5
  if kind == 0:  # specks
    masks = noise > 1.5
  elif kind == 1:  # boxes, which may reach the border
    masks = np.zeros(noise.shape, bool)
    for mask in masks:
      low = [random.integers(0, side) for side in shape]
      mask[tuple(slice(a, a + random.integers(1, 30)) for a in low)] = True
  else:  # blobs; the second one follows the first
    smooth = scipy.ndimage.gaussian_filter(noise, (0, *[2.5] * axes))
    smooth[1] += random.choice([0, 1, 3]) * smooth[0]
    masks = smooth > random.choice([0, 0.05])
  if seed % 20 == 7:
    masks[random.integers(2)] = False
  spacing = random.choice([0.3, 0.77, 1.0, 2.5, 7.7], axes).tolist()
  return *masks, None if seed % 4 == 0 else spacing


@pytest.fixture(params=["chosen", "tree", "transform"])
def way(request, monkeypatch):
  """How distances are found: by what is fast, or all but 0 in one way."""
  if request.param != "chosen":
    share = {"tree": 0, "transform": 1e9}
    monkeypatch.setattr(surfaces, "NEAR", 1)
    monkeypatch.setattr(surfaces, "TREE_FROM", share[request.param])


def test_equals_the_plain_formulation(way):
  compared = 0
  for seed in range(CASES):
    pred, ref, spacing = random_case(seed)
    found = surfaces.compare(pred, ref, TOLERANCES, spacing)
    if not (pred.any() and ref.any()):
      continue
    sides = plain(pred, ref, spacing or [1] * pred.ndim)
    assert found.hd95 == max(np.percentile(side, 95) for side in sides)
    assert (found.pred, found.ref) == tuple(len(side) for side in sides)
    slack = 1 + surfaces.SLACK
    for within, length in zip(found.within, TOLERANCES, strict=True):
      assert within == sum((side <= length * slack).sum() for side in sides)
    compared += 1
  assert compared > 0.85 * CASES


@pytest.mark.heavy
def test_equals_monai():
  metrics = pytest.importorskip("monai.metrics", reason="monai not installed")
  torch = pytest.importorskip("torch", reason="torch is not installed")
  # MONAI computes in 32 bits: no tolerance that a distance may hit, and a
  # percentile whose place between two distances is rounded.
  tolerance = 1.23456
  for seed in range(CASES):
    pred, ref, spacing = random_case(seed)
    if not (pred.any() and ref.any()):
      continue
    found = surfaces.compare(pred, ref, [tolerance], spacing)
    batch = [torch.from_numpy(mask)[None, None] for mask in (pred, ref)]
    asked = dict(include_background=True, spacing=spacing)
    hd95 = metrics.compute_hausdorff_distance(*batch, percentile=95, **asked)
    nsd = metrics.compute_surface_dice(*batch, [tolerance], **asked)
    assert found.hd95 == pytest.approx(hd95.item(), rel=1e-4)
    assert found.nsd[0] == pytest.approx(nsd.item(), rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_swapping_masks_and_moving_both_changes_nothing(seed):
  pred, ref, spacing = random_case(seed)
  found = surfaces.compare(pred, ref, TOLERANCES, spacing)
  back = surfaces.compare(ref, pred, TOLERANCES, spacing)
  assert (back.hd95, back.nsd) == (found.hd95, found.nsd)
  if found.one_empty:  # the diagonal depends on the grid
    return
  pad = [(3, 2)] * pred.ndim
  moved = surfaces.compare(
    np.pad(pred, pad), np.pad(ref, pad), TOLERANCES, spacing
  )
  assert moved == found


@pytest.mark.parametrize(
  "spacing", [(1, 1), (0.3, 7.7), (7.7, 1.54, 1.54), (0.3, 2.5, 7.7)]
)
def test_no_step_that_is_left_out_is_shorter(spacing):
  offset_NA, length_N = surfaces._near(np.array(spacing))
  assert (np.diff(length_N) >= 0).all() and len(length_N) > 1
  tried = {tuple(offset_A) for offset_A in offset_NA.tolist()}
  for offset_A in itertools.product(range(-9, 10), repeat=len(spacing)):
    if offset_A not in tried:
      assert np.linalg.norm(np.multiply(offset_A, spacing)) >= length_N[-1]


def test_dense_and_far_apart():
  """Nothing is near, and a tree would hold a third of the grid."""
  pred_IJ, ref_IJ = np.zeros((2, 40, 60), bool)
  pred_IJ[::2, :25], ref_IJ[::2, -25:] = True, True
  found = surfaces.compare(pred_IJ, ref_IJ, [11, 20])
  sides = plain(pred_IJ, ref_IJ, (1, 1))
  assert found.hd95 == max(np.percentile(side, 95) for side in sides)
  assert found.within[0] == sum((side <= 11).sum() for side in sides) > 0


@pytest.mark.parametrize("place", [0, 1, 31, 76])
def test_few_are_near_among_many_that_are_far(place):
  """Whether steps are worth trying is asked of every other one of them."""
  pred_IJ, ref_IJ = np.zeros((2, 30, 80), bool)
  pred_IJ[2, 1:78], ref_IJ[27, 1:78] = True, True
  assert pred_IJ.sum() > surfaces.SOME
  ref_IJ[3, 1 + place] = True
  found = surfaces.compare(pred_IJ, ref_IJ, [1, 5])
  sides = plain(pred_IJ, ref_IJ, (1, 1))
  assert found.hd95 == max(np.percentile(side, 95) for side in sides)
  assert found.within == tuple(
    sum(int((side <= tolerance).sum()) for side in sides)
    for tolerance in (1, 5)
  )
  assert found.within[0] > 0


def test_spacing_scales_lengths():
  pred, ref, _ = random_case(3)
  one = surfaces.compare(pred, ref, [1, 2], [1] * pred.ndim)
  two = surfaces.compare(pred, ref, [2, 4], [2] * pred.ndim)
  assert two.hd95 == 2 * one.hd95
  assert two.within == one.within


@pytest.mark.parametrize("axes", [2, 3])
def test_surface_is_the_mask_without_its_erosion(axes):
  random = np.random.default_rng(axes)
  for _ in range(50):
    mask = random.random(random.integers(1, 9, axes)) < 0.8
    kept = mask.copy()
    inner = scipy.ndimage.binary_erosion(mask)
    np.testing.assert_array_equal(surfaces.surface(mask), mask & ~inner)
    np.testing.assert_array_equal(mask, kept)


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5)])
def test_one_empty_mask_costs_more_than_any_other(shape):
  empty, corner, far = (np.zeros(shape, bool) for _ in range(3))
  corner.flat[0] = far.flat[-1] = True
  spacing = (7.7, 1.5, 0.8)[-len(shape) :]
  missed = surfaces.compare(empty, corner, [1], spacing)
  furthest = surfaces.compare(far, corner, [1], spacing)
  assert missed.one_empty and not furthest.one_empty
  assert missed.hd95 == pytest.approx(furthest.hd95, rel=1e-15)
  assert missed.nsd == (0,)
  nothing = surfaces.compare(empty, empty, [1, 2], spacing)
  assert (nothing.hd95, nothing.nsd, nothing.one_empty) == (0, (1, 1), False)


def test_what_cannot_be_compared_is_refused():
  mask_IJ = np.ones((2, 3), bool)
  with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\).*resize"):
    surfaces.compare(mask_IJ, mask_IJ.T, [1])
  with pytest.raises(ValueError, match=r"int8.*threshold"):
    surfaces.compare(mask_IJ, mask_IJ.astype(np.int8), [1])
  with pytest.raises(ValueError, match="2 or 3 axes"):
    surfaces.compare(mask_IJ[0], mask_IJ[0], [1])
  for spacing in ([1], [1, 0], [1, float("nan")], [1, 1, 1]):
    with pytest.raises(ValueError, match="2 positive lengths"):
      surfaces.compare(mask_IJ, mask_IJ, [1], spacing)
  with pytest.raises(ValueError, match="tolerances"):
    surfaces.compare(mask_IJ, mask_IJ, [-1])


@pytest.mark.parametrize("kind", ["organ", "noise"])
def test_takes_a_fifth_of_the_plain_formulation_at_1024(kind):
  """In time of the process; 43 and 18 times were measured."""
  rows_I1, columns_1J = np.ogrid[:1024, :1024]
  if kind == "organ":
    pred_IJ, ref_IJ = (
      (rows_I1 - 500) ** 2 / a**2 + (columns_1J - 510) ** 2 / b**2 < 1
      for a, b in ((250, 180), (240, 190))
    )
  else:
    pred_IJ, ref_IJ = np.random.default_rng(0).random((2, 1024, 1024)) < 0.5

  def least(call):
    seconds = []
    for _ in range(3):
      start = time.process_time()
      call()
      seconds.append(time.process_time() - start)
    return min(seconds)

  ours = least(lambda: surfaces.compare(pred_IJ, ref_IJ, [2.0], (0.5, 0.7)))
  assert least(lambda: plain(pred_IJ, ref_IJ, (0.5, 0.7))) > 5 * ours
