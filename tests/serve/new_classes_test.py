"""New classes: their files, their names in requests, their masks' places."""

import numpy as np
import pytest

from rcmed_jax.serve import new_classes

GRID = 8
SIZE = 64


def _learn(masks, **told):
  rng = np.random.default_rng(0)
  features = rng.normal(size=(len(masks), GRID, GRID, 4)).astype(np.float32)
  return new_classes.learn(
    "bone island", "X-Ray", features, np.stack(masks), fingerprint="f", **told
  )


def _square(row, column, side=24):
  mask = np.zeros((SIZE, SIZE), np.uint8)
  mask[row : row + side, column : column + side] = 1
  return mask


@pytest.mark.parametrize(
  ("masks", "prior", "on"),
  [
    ([_square(8, 8), _square(10, 8)], "auto", True),
    ([_square(8, 8), _square(36, 36)], "auto", False),
    ([_square(8, 8)], "auto", False),  # says nothing of the next
    ([_square(8, 8)], "on", True),
    ([_square(8, 8), _square(8, 8)], "off", False),
  ],
)
def test_the_prior_is_on_where_the_masks_agree(masks, prior, on):
  strengths = _learn(masks, prior=prior).strengths
  assert strengths.pixels == 0.3
  assert (strengths.tokens, strengths.logits) == ((0.5, 0.5) if on else (0, 0))


def test_agreement_is_the_mean_iou_of_pairs():
  masks = [_square(0, 0), _square(12, 0), _square(40, 40)]
  overlap = 12 * 24 / (2 * 24 * 24 - 12 * 24)
  assert _learn(masks).agreement == pytest.approx(overlap / 3)


def test_an_example_too_small_teaches_nothing():
  large = _square(8, 8)
  alone, both = (
    _learn(masks) for masks in ([large], [large, _square(0, 0, 1)])
  )
  assert both.supports == 1
  np.testing.assert_allclose(both.prototype_C, alone.prototype_C, rtol=1e-5)
  with pytest.raises(ValueError, match="no mask covers a cell"):
    _learn([_square(0, 0, 1)])


def test_a_file_gives_the_class_back(tmp_path):
  held = _learn([_square(8, 8), _square(9, 9)])
  held.save(tmp_path / "class")
  back = new_classes.load(tmp_path / "class")
  for name in ("name", "modality", "strengths", "supports", "fingerprint"):
    assert getattr(back, name) == getattr(held, name)
  np.testing.assert_array_equal(back.prototype_C, held.prototype_C)
  np.testing.assert_array_equal(back.prior_YX, held.prior_YX)


def test_what_is_no_class_file_is_named(tmp_path):
  path = tmp_path / "class.npz"
  with pytest.raises(FileNotFoundError, match="rcmed adapt"):
    new_classes.load(path)
  path.write_bytes(b"nothing")
  with pytest.raises(ValueError, match=r"class\.npz is no class file"):
    new_classes.load(path)
  _learn([_square(8, 8)]).save(path)
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=r"class\.npz is no class file"):
    new_classes.load(path)
  np.savez(path, format=0)
  with pytest.raises(ValueError, match="another format"):
    new_classes.load(path)
  np.savez(path, format=1, name=np.array([{}], object))
  with pytest.raises(ValueError, match="no class file"):
    new_classes.load(path)


@pytest.mark.parametrize(
  ("text", "named"),
  [
    ("Where is the Bone Island?", True),
    ("bone island", True),
    ("Where are the bone islands?", False),
    ("Where is the bone?", False),
  ],
)
def test_a_request_names_it_in_whole_words(text, named):
  assert _learn([_square(8, 8)]).named_in(text) is named
