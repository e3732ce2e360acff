import pytest

from rcmed_jax.data import modalities, readers


@pytest.mark.parametrize(
  "text",
  [
    "CT",
    "ct",
    "Computed Tomography",
    "computed tomography",
    "computed_tomography",
    "  COMPUTED  tomography ",
  ],
)
def test_all_ways_to_write_one_are_one(text):
  assert modalities.normal(text) == modalities.CT == "computed tomography"


def test_every_name_word_and_code_of_dicom_is_known():
  for known in (readers.MODALITIES, modalities.DICOM):
    for word, name in known.items():
      assert modalities.normal(word) == name
      assert modalities.normal(name.upper()) == name
  assert modalities.normal("x-ray") == modalities.normal("X Ray") == "X-Ray"
  assert modalities.normal("MRI") == "magnetic resonance"
  assert modalities.normal("") == ""


def test_what_is_not_known_is_refused_with_the_nearest():
  with pytest.raises(ValueError, match="did you mean 'computed tomography'"):
    modalities.normal("computed tomograpy")
  with pytest.raises(ValueError, match=r"expected one of .*--modality-word"):
    modalities.normal("sonar 3000")
  words = (("cbct", "cone beam"),)
  for text in ("CBCT", "Cone beam"):
    assert modalities.normal(text, words) == "cone beam"
  assert modalities.normal_words((("cta", "CT"), *words)) == (
    ("cta", "computed tomography"),
    *words,
  )


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("Where is the liver in this computed tomography image?", modalities.CT),
    ("Show us the liver in this CT image", modalities.CT),
    ("Is there pathology of the fundus in this CT scan?", modalities.CT),
    ("Where is vertebra T1 in this CT?", modalities.CT),
    ("the tumor in this T2-weighted image", modalities.MR),
    ("the liver in this X-ray image", "X-Ray"),
    ("the liver in this x ray image", "X-Ray"),
    ("a fetus (US)", "ultrasound"),
    ("optical coherence tomography of the fovea", "oct"),
    ("this OCT image", "oct"),
    ("a direct image of the octopus", None),
    ("show us vertebra T1", None),
    ("the case x", None),
    ("PET/CT", "both"),
  ],
)
def test_requests_name_modalities_in_whole_words(text, found):
  expected = {
    None: set(),
    "both": {"pet", modalities.CT},
  }.get(found, {found})
  assert modalities.in_sentence(text) == expected
