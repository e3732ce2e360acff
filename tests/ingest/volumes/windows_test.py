import numpy as np
import pytest

from rcmed_jax.data import modalities
from rcmed_jax.ingest.volumes import geometry, windows

CT = modalities.CT


def view(shape):
  return geometry.View(shape, None)


def test_a_window_runs_from_black_to_white():
  # Radiopaedia's example: the brain's 80 and 40 is black at 0, white at 80.
  values_IJ = np.array([[-1000, 0, 20, 40, 60, 80, 3000]])
  np.testing.assert_array_equal(
    windows.apply(values_IJ, windows.CT["brain"]),
    [[0, 0, 64, 128, 191, 255, 255]],
  )


@pytest.mark.parametrize(
  ("classes", "window"),
  [
    (["lung"], "lung"),
    (["left lung lower lobe", "lung nodule"], "lung"),
    (["COVID-19 infection"], "lung"),
    (["pulmonary artery"], "vessels"),
    (["hepatic vein"], "vessels"),
    (["liver"], "liver"),
    (["liver tumor", "liver"], "liver"),
    (["vertebra L1", "rib_left_3"], "bone"),
    (["hip left"], "bone"),
    (["hippocampus"], "brain"),
    (["intracerebral hemorrhage"], "brain"),
    (["cerebral hemorrhage"], "brain"),
    (["heart", "esophagus"], "mediastinum"),
    (["spleen"], "soft tissue"),
    (["liver", "spleen"], "soft tissue"),
    (["lung", "vertebra T5"], "soft tissue"),
    (["sternocleidomastoid muscle"], "soft tissue"),
    (["craniopharyngioma"], "brain"),
    (["renal pelvis"], "soft tissue"),
    (["striatum"], "soft tissue"),  # no atrium
    (["ground-glass opacity"], "lung"),
    ([], "soft tissue"),
  ],
)
def test_targets_choose_the_window(classes, window):
  assert windows.choose(classes) == window


def test_lung_shows_more_in_its_own_window_than_in_the_liver_s():
  rng = np.random.default_rng(0)
  lung_IJ = rng.normal(-750, 80, (64, 64))
  spread = {
    name: windows.apply(lung_IJ, windows.CT[name]).std()
    for name in ("lung", "liver", "bone")
  }
  assert spread["lung"] > 10
  assert spread["liver"] == 0


def test_hounsfield_units_are_known_by_their_air():
  rng = np.random.default_rng(0)
  body_ZIJ = rng.integers(-1000, 400, (3, 20, 20)).astype(np.int16)
  shape = view(body_ZIJ.shape)
  _, paint = windows.scale(body_ZIJ, shape, modality=CT, classes=["liver"])
  np.testing.assert_array_equal(
    paint(body_ZIJ[1])[..., 0],
    windows.apply(body_ZIJ[1], windows.CT["liver"]),
  )
  # The same scan after somebody has scaled it to 0..255: no units are left.
  scaled_ZIJ = ((body_ZIJ + 1000) / 1400 * 255).astype(np.uint8)
  shown, paint = windows.scale(scaled_ZIJ, shape, modality=CT)
  assert paint(scaled_ZIJ[1]).std() > 60
  assert shown.window == windows.PERCENTILES and "0, is no air" in shown.why


def test_a_named_window_overrides_the_targets():
  body_ZIJ = np.linspace(-1000, 1000, 400).reshape(1, 20, 20)
  shape = view((1, 20, 20))
  shown, paint = windows.scale(
    body_ZIJ, shape, modality=CT, window="bone", classes=["lung"]
  )
  assert shown == windows.Shown(CT, "bone", "asked for")
  np.testing.assert_array_equal(
    paint(body_ZIJ[0])[..., 2],
    windows.apply(body_ZIJ[0], windows.CT["bone"]),
  )
  with pytest.raises(ValueError, match="soft tissue"):
    windows.check("sof tissue")
  windows.check("")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_other_values_go_by_percentiles_of_the_whole_volume(dtype):
  rng = np.random.default_rng(1)
  volume_ZIJ = rng.integers(1, 100, (4, 30, 30)).astype(dtype)
  volume_ZIJ[:, :25] = 0  # mostly air
  volume_ZIJ[2, 28] = 101
  _, paint = windows.scale(volume_ZIJ, view(volume_ZIJ.shape), modality="pet")
  shown_ZIJC = np.array([paint(slice_IJ) for slice_IJ in volume_ZIJ])
  assert shown_ZIJC.dtype == np.uint8
  assert shown_ZIJC.shape == (4, 30, 30, 3)
  inside = volume_ZIJ != 0
  low, high = np.percentile(volume_ZIJ[inside].astype(float), (0.5, 99.5))
  expected = np.clip((volume_ZIJ - low) / (high - low), 0, 1) * 255
  assert np.abs(shown_ZIJC[..., 0] - expected).max() <= 0.5
  assert (shown_ZIJC[~inside] == 0).all()
  # One scale for all slices: equal values are equally bright.
  assert len(np.unique(shown_ZIJC[volume_ZIJ == 50])) == 1


def test_what_is_no_number_is_black_and_does_not_count():
  volume_ZIJ = np.full((1, 20, 20), 10.0)
  volume_ZIJ[0, 0] = np.nan
  volume_ZIJ[0, 1] = np.inf
  volume_ZIJ[0, 2] = np.linspace(1, 20, 20)
  _, paint = windows.scale(volume_ZIJ, view((1, 20, 20)), modality="pet")
  shown_IJC = paint(volume_ZIJ[0])
  assert (shown_IJC[0] == 0).all()
  assert (shown_IJC[1] == 255).all()
  assert 0 < shown_IJC[5, 5, 0] < 255


def test_a_volume_of_one_value_or_none_is_no_error():
  for value in (0, 7):
    volume_ZIJ = np.full((2, 20, 20), value, np.int16)
    _, paint = windows.scale(volume_ZIJ, view((2, 20, 20)), modality="pet")
    assert len(np.unique(paint(volume_ZIJ[0]))) == 1


def test_a_large_volume_is_sampled_well():
  rng = np.random.default_rng(0)
  volume_ZIJ = rng.gamma(2, 100, (20, 500, 500)).astype(np.float32)
  low, high = np.percentile(volume_ZIJ, (0.5, 99.5))
  _, paint = windows.scale(volume_ZIJ, view(volume_ZIJ.shape), modality="pet")
  expected = np.clip((volume_ZIJ[3] - low) / (high - low), 0, 1) * 255
  assert np.abs(paint(volume_ZIJ[3])[..., 0] - expected).max() < 2


@pytest.mark.parametrize(
  ("told", "window"),
  [
    ({"modality": CT}, "liver"),
    ({"modality": CT, "lowest": -100}, windows.PERCENTILES),
    ({"modality": CT, "window": "lung"}, "lung"),
    ({"modality": CT, "window": windows.PERCENTILES}, windows.PERCENTILES),
    ({"modality": "pet"}, windows.PERCENTILES),
    ({"modality": "pet", "window": "lung"}, windows.PERCENTILES),
    # A window that is asked for says what the values are.
    ({"modality": modalities.UNKNOWN, "window": "lung"}, "lung"),
    ({"modality": modalities.UNKNOWN}, windows.PERCENTILES),
    # A model is asked in no window that it was not trained in.
    ({"modality": CT, "trained": ["soft tissue"]}, "soft tissue"),
    ({"modality": CT, "trained": ["liver", "soft tissue"]}, "liver"),
    ({"modality": CT, "trained": ["bone", "lung"]}, "bone"),
    ({"modality": CT, "trained": ["bone"], "window": "lung"}, "lung"),
  ],
)
def test_one_place_decides_and_says_why(told, window):
  shown = windows.decide(**({"classes": ["liver"], "lowest": -1000} | told))
  assert shown.window == window and shown.why
  assert shown.doubtful == (told == {"modality": modalities.UNKNOWN})
  assert shown.json().keys() == {"modality", "window", "why"}
  told = {"modality": modalities.UNKNOWN, "lowest": -300}
  assert not windows.decide(**told).doubtful


@pytest.mark.parametrize(
  "text",
  [
    "Where is the liver in this CT image?",
    "Please, where is the liver in this CT image?",
    "Where is the liver in this CT image, please?",
    "Show the wibble, and the liver tumor",
  ],
)
def test_only_what_is_known_votes_in_a_request(text):
  assert windows.choose(windows.named(text)) == "liver"
  assert windows.choose(windows.named("liver and spleen")) == "soft tissue"
  assert windows.named("What is in this image?") == []
