"""Small data sets on disk and a tokenizer, for the tests of this folder."""

from collections.abc import Callable, Mapping, Sequence
import json
import pathlib

import cv2
import numpy as np
import pytest

from rcmed_jax.data import pipeline, tokens
from rcmed_jax.data.records import Record

CLASSES = ("liver", "spleen", "left kidney", "gallbladder", "aorta", "heart")
MODALITIES = ("computed tomography", "magnetic resonance", "X-Ray", "pet")

# {image file name: {class: rows and columns of its square}}
Layout = Mapping[str, Mapping[str, tuple[slice, slice]]]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> tokens.Tokenizer:
  """SentencePiece with LLaMA's settings, trained on a few conversations."""
  items = [
    Record("", "", tuple((name, name) for name in CLASSES), modality, "set")
    for modality in MODALITIES
  ]
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  return tokens.train_tokenizer(pipeline.corpus(items), 1024, path)


@pytest.fixture(scope="session")
def dataset() -> Callable[..., pathlib.Path]:
  """Writes an index with its images and masks; returns the index's path."""

  def write(
    folder: pathlib.Path,
    layout: Layout,
    shapes: Sequence[tuple[int, int]] = ((40, 32),),
    descriptions: Mapping[str, object] | None = None,
  ) -> pathlib.Path:
    rng = np.random.default_rng(0)
    index = {}
    for number, (image, targets) in enumerate(layout.items()):
      shape = shapes[number % len(shapes)]
      path = folder / image
      path.parent.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(path), rng.integers(0, 256, (*shape, 3), np.uint8))
      index[image] = []
      for name, square in targets.items():
        mask_IJ = np.zeros(shape, np.uint8)
        mask_IJ[square] = 255
        mask = f"{image[:-4]}--{name.replace(' ', '_')}.png"
        cv2.imwrite(str(folder / mask), mask_IJ)
        index[image].append({mask: name.replace(" ", "_")})
    if descriptions is not None:
      (folder / "descriptions.json").write_text(json.dumps(descriptions))
    path = folder / "image2label_train.json"
    path.write_text(json.dumps(index))
    return path

  return write
