"""Pictures with masks painted on."""

import numpy as np

from rcmed_jax.eval import overlays


def test_painted_changes_the_mask_and_its_outline_only():
  image_IJC = np.full((40, 60, 3), 100, np.uint8)
  mask_IJ = np.zeros((40, 60), bool)
  mask_IJ[10:30, 20:50] = True
  painted_IJC = overlays.painted(image_IJC, [mask_IJ])
  near_IJ = np.zeros_like(mask_IJ)
  near_IJ[8:32, 18:52] = True
  np.testing.assert_array_equal(painted_IJC[~near_IJ], image_IJC[~near_IJ])
  # Inside: the share FILL / 255 of the first colour.
  part = overlays.FILL / 255
  expected_C = (1 - part) * 100 + part * np.array(overlays.color(0))
  np.testing.assert_allclose(painted_IJC[20, 35], expected_C, atol=0.51)
  assert image_IJC.max() == 100  # the input is untouched
