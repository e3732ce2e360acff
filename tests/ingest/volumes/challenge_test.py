import json
import pickle
import zipfile

import numpy as np
import pytest
import volume_files

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.volumes import challenge, volumes

TEXTS = {
  "CT_Organs": {
    "1": [
      "Right_Kidney",
      "CT imaging of the right kidney in the abdomen.",
      "Kidney on the right side",
    ],
    "2": ["Spleen", "The spleen as seen in a CT scan"],
    "instance_label": 0,
  },
  "Microscopy_Cells": {
    "1": ["Cell nucleus", "Nuclei of cells in microscopy"],
    "instance_label": 1,
  },
}


def arrays():
  image, labels, _ = volume_files.patient()
  image_ZIJ = volume_files.axial((image // 10).clip(0, 255).astype(np.uint8))
  return image_ZIJ, volume_files.axial(labels)


def save(folder, dataset, name, texts=TEXTS, **changes):
  image_ZIJ, labels_ZIJ = arrays()
  place = folder / dataset.split("_")[0] / dataset
  place.mkdir(parents=True, exist_ok=True)
  if texts is not None:
    (folder / "CVPR25_TextSegFMData_with_class.json").write_text(
      json.dumps(texts)
    )
  content = {
    "imgs": image_ZIJ,
    "gts": labels_ZIJ,
    "spacing": np.array([1.5, 0.75, 4.0]),
    **changes,
  }
  path = place / f"{name}.npz"
  np.savez_compressed(
    path, **{key: value for key, value in content.items() if value is not None}
  )
  return path


def read(path, **options):
  return volume_files.read(
    challenge.open_source(path, sources.Options(**options))
  )


def test_slices_are_axial_and_named_by_the_first_text(tmp_path):
  save(tmp_path, "CT_Organs", "CT_Organs_0001")
  triplets, faults = read(tmp_path)
  image_ZIJ, labels_ZIJ = arrays()
  assert [type(f) for f in faults] == [volumes.EmptySlicesError]
  assert len(triplets) == labels_ZIJ.any((1, 2)).sum()
  names = {"Right Kidney": 1, "Spleen": 2}
  for triplet in triplets:
    z = int(triplet.id[-4:])
    assert set(triplet.classes) == {
      name for name, value in names.items() if (labels_ZIJ[z] == value).any()
    }
    for name, mask_IJ in zip(triplet.classes, triplet.masks_GIJ, strict=True):
      np.testing.assert_array_equal(mask_IJ, labels_ZIJ[z] == names[name])
    # The picture lies as it is stored: brighter means brighter, pixel by pixel.
    grey_IJ = triplet.image_IJC[..., 0].astype(int)
    order = np.argsort(image_ZIJ[z].ravel(), kind="stable")
    assert (np.diff(grey_IJ.ravel()[order]) >= 0).all()
    assert triplet.spacing_mm == pytest.approx((0.75, 1.5))
    assert triplet.modality == "computed tomography"
    assert triplet.source == "CT_Organs"
    said = {
      text.rstrip(".")
      for t in TEXTS["CT_Organs"].values()
      if t
      for text in t[1:]
    }
    for sentence in triplet.description.rstrip(".").split(". "):
      assert sentence in said


def test_descriptions_are_drawn_alike_every_time(tmp_path):
  save(tmp_path, "CT_Organs", "a")
  one, other = (read(tmp_path)[0] for _ in range(2))
  assert [t.description for t in one] == [t.description for t in other]
  assert len({t.description for t in one}) > 1


def test_instances_are_one_class(tmp_path):
  _, labels_ZIJ = arrays()
  save(
    tmp_path, "Microscopy_Cells", "a", gts=labels_ZIJ.astype(np.uint16) * 300
  )
  triplets, _ = read(tmp_path)
  assert {t.classes for t in triplets} == {("Cell nucleus",)}
  assert triplets[0].modality == "microscopy"
  for triplet in triplets:
    np.testing.assert_array_equal(
      triplet.masks_GIJ[0], labels_ZIJ[int(triplet.id[-4:])] > 0
    )


def test_labels_of_the_validation_set_lie_beside(tmp_path):
  _, labels_ZIJ = arrays()
  for folder, content in (
    ("3D_val_npz", {"imgs": arrays()[0], "spacing": np.ones(3)}),
    ("3D_val_gt", {"gts": labels_ZIJ}),
  ):
    (tmp_path / folder).mkdir()
    np.savez_compressed(tmp_path / folder / "CT_Organs_7.npz", **content)
  (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
  triplets, faults = read(tmp_path)
  assert len(triplets) == labels_ZIJ.any((1, 2)).sum()
  assert len(faults) == 1
  assert triplets[0].source == "CT_Organs"


def test_names_by_hand_where_there_are_no_texts(tmp_path):
  path = save(tmp_path, "CT_Organs", "a", texts=None)
  triplets, faults = read(path)
  assert not triplets
  assert "--label" in str(faults[0])
  triplets, _ = read(path, label_names=((1, "kidney"), (2, "spleen")))
  assert {n for t in triplets for n in t.classes} == {"kidney", "spleen"}
  assert {t.description for t in triplets} == {None}


def test_a_sentence_is_no_name(tmp_path):
  texts = {
    "CT_Organs": {
      "1": "Visualization of the right kidney in abdominal CT imaging",
      "instance_label": 0,
    }
  }
  save(tmp_path, "CT_Organs", "a", texts=texts)
  triplets, faults = read(tmp_path)
  assert not triplets
  assert "sentence" in str(faults[0])


@pytest.mark.parametrize(
  "spacing", [None, np.zeros(3), np.array([1, np.nan, 2])]
)
def test_spacing_that_is_none_is_unknown(tmp_path, spacing):
  save(tmp_path, "CT_Organs", "a", spacing=spacing)
  triplets, _ = read(tmp_path)
  assert {t.spacing_mm for t in triplets} == {None}


def test_colours_are_kept_and_other_axes_refused(tmp_path):
  image_ZIJ, _ = arrays()
  save(tmp_path, "CT_Organs", "a", imgs=np.stack([image_ZIJ] * 3, -1))
  triplets, _ = read(tmp_path)
  assert triplets[0].image_IJC.shape == (24, 20, 3)
  save(tmp_path, "CT_Organs", "a", imgs=np.stack([image_ZIJ] * 4, -1))
  triplets, faults = read(tmp_path)
  assert not triplets
  assert "imgs is uint8[18, 24, 20, 4]" in str(faults[0])


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    (dict(gts=np.zeros((3, 3, 3), np.uint8)), "gts is"),
    (dict(gts=None), "it has none"),
    (dict(imgs=None), "no imgs"),
    (dict(imgs=np.zeros((20, 20), np.uint8)), "imgs is"),
    (dict(gts=np.full((18, 24, 20), {"a": 1}, object)), "Python objects"),
    (dict(imgs=np.full((18, 24, 20), "x")), "imgs is"),
  ],
)
def test_what_cannot_be_used_is_refused(tmp_path, changes, reason):
  save(tmp_path, "CT_Organs", "a", **changes)
  triplets, faults = read(tmp_path)
  assert not triplets
  assert reason in str(faults[0])


def test_a_bomb_is_seen_in_its_header(tmp_path):
  path = save(tmp_path, "CT_Organs", "a")
  with (
    zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    archive.open("imgs.npy", "w") as file,
  ):
    np.lib.format.write_array_header_1_0(
      file,
      {"descr": "|u1", "fortran_order": False, "shape": (5000, 1000, 1000)},
    )
    file.write(bytes(1000))
  _, faults = read(tmp_path)
  assert "at most 900" in str(faults[0])


def test_broken_files_are_faults(tmp_path):
  path = save(tmp_path, "CT_Organs", "a")
  whole = path.read_bytes()
  for content in (b"", b"PK", whole[:-30], whole[: len(whole) // 2]):
    path.write_bytes(content)
    triplets, faults = read(path)
    assert not triplets
    assert len(faults) == 1


def test_matches_and_travels(tmp_path):
  assert not challenge.matches(tmp_path)
  with pytest.raises(DataError, match="npz"):
    list(challenge.open_source(tmp_path, sources.Options()).units([].append))
  path = save(tmp_path, "CT_Organs", "a")
  assert challenge.matches(tmp_path)
  assert challenge.matches(path)
  np.savez(tmp_path / "b.npz", other=np.ones(3))
  assert not challenge.matches(tmp_path / "b.npz")
  for unit in challenge.open_source(path, sources.Options()).units([].append):
    assert pickle.loads(pickle.dumps(unit)) == unit
