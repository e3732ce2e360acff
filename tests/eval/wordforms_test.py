import pytest

from rcmed_jax.eval import wordforms


@pytest.mark.parametrize(
  ("one", "other"),
  [
    ("kidney_left", "left kidney"),
    ("Left Kidneys", "kidney, left"),
    ("nuclei", "nucleus"),
    ("liver metastases", "Liver metastasis"),
    ("tumour", "tumor"),
    ("oedema of the brain", "edema of brain"),
    ("teeth", "tooth"),
    ("biopsies", "biopsy"),
    ("COVID-19 infection", "covid 19 infections"),
  ],
)
def test_forms_of_one_name_share_a_key(one, other):
  assert wordforms.key(one) == wordforms.key(other)


@pytest.mark.parametrize(
  ("one", "other"),
  [
    ("left kidney", "right kidney"),
    ("liver", "liver tumor"),
    ("vertebra L1", "vertebra L2"),
    ("ileum", "ilium"),
    ("optic disc", "optic cup"),
    ("upper lobe", "lower lobe"),
  ],
)
def test_different_things_have_different_keys(one, other):
  assert wordforms.key(one) != wordforms.key(other)


def test_side():
  assert wordforms.side("Kidney_LEFT") == "left"
  assert wordforms.side("rt lung") == "right"
  assert wordforms.side("liver") == ""
  assert wordforms.side("left or right lung") == ""


@pytest.mark.parametrize(
  ("singular", "plural"),
  [
    ("polyp", "polyps"),
    ("lung opacity", "lung opacities"),
    ("cell nucleus", "cell nuclei"),
    ("vertebra", "vertebrae"),
    ("brain metastasis", "brain metastases"),
    ("breast mass", "breast masses"),
    ("tumor of the liver", "tumors of the liver"),
    ("tooth", "teeth"),
  ],
)
def test_number_there_and_back(singular, plural):
  assert wordforms.plural(singular) == plural
  assert wordforms.singular(plural) == singular


def test_singular_leaves_singulars_alone():
  for name in ("uterus", "brain metastasis", "breast mass", "kidney"):
    assert wordforms.singular(name) == name
