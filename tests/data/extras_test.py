import sys

import pytest

from rcmed_jax.data import extras


def test_what_is_installed_is_loaded():
  assert extras.load("json.decoder", "Text", "dev").JSONDecoder


def test_what_is_missing_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "nibabel", None)
  with pytest.raises(
    ImportError,
    match=r'NIfTI files: this needs nibabel; .*"rcmed-jax\[dicom\]"',
  ):
    extras.load("nibabel", "NIfTI files", "dicom")
