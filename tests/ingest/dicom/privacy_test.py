import logging
import pathlib
import pickle
import subprocess
import warnings

import dicom_files
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
import pytest
import volume_files

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import dicom, privacy

KEYED = sources.Options(key=b"secret", empty_slices="keep", unlabelled="keep")


def test_equal_values_get_equal_names_and_no_others_do():
  one = privacy.pseudonym(KEYED, "patient", "4711")
  assert one == privacy.pseudonym(KEYED, "patient", "4711")
  others = {
    privacy.pseudonym(KEYED, "patient", "4712"),
    privacy.pseudonym(KEYED, "study", "4711"),
    privacy.pseudonym(sources.Options(key=b"other"), "patient", "4711"),
  }
  assert len(others | {one}) == 4
  assert "4711" not in one
  assert one.startswith("patient-")


def test_keys_may_be_of_any_length():
  names = {
    privacy.pseudonym(sources.Options(key=bytes(n) + b"k"), "a", "b")
    for n in (0, 10, 63, 64, 500)
  }
  assert len(names) == 5


def test_without_a_key_there_are_no_pseudonyms_but_new_ones():
  bare = sources.Options()
  with pytest.raises(ValueError, match="key"):
    privacy.pseudonym(bare, "patient", "4711")
  one, other = privacy.with_key(bare), privacy.with_key(bare)
  assert len(one.key) >= 16
  assert one.key != other.key
  assert privacy.with_key(KEYED) is KEYED
  kept = sources.Options(keep_identifiers=True)
  assert privacy.pseudonym(privacy.with_key(kept), "patient", "4711") == "4711"


def test_files_are_counted_as_sort_counts_them(tmp_path):
  for name in ("b/1", "a b/2", "a/10", "a/9", "ä/1", "B/1", "a-b/3", "z"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
  listed = subprocess.run(
    ["bash", "-c", 'find "$1" -type f | LC_ALL=C sort', "-", str(tmp_path)],
    check=True,
    capture_output=True,
    text=True,
  )
  assert listed.stdout.splitlines() == list(map(str, privacy.files(tmp_path)))


def test_what_is_said_of_a_failure_is_its_kind_alone(capsys, caplog):
  def work():
    warnings.warn("SMITH", stacklevel=1)
    logging.getLogger("pydicom").error("SMITH")
    raise KeyError("SMITH")

  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with pytest.raises(DataError) as caught:
      privacy.attempt("a#1", "header", "it failed", "Mend it", work)
  assert "KeyError" in str(caught.value)
  assert caught.value.__cause__ is None
  assert caught.value.__context__ is None
  said = str(caught.value) + repr(caught.value) + caplog.text
  said += "".join(capsys.readouterr())
  assert "SMITH" not in said
  assert not logging.getLogger("pydicom").disabled


def test_a_known_fault_passes_as_it_is():
  error = DataError("a", "b", "c", "d")

  def work():
    raise error

  with pytest.raises(DataError) as caught:
    privacy.attempt("", "", "", "", work)
  assert caught.value is error


@pytest.mark.parametrize(
  ("name", "told"),
  [
    ("Smith tumour", True),
    ("GTV_SMITH_1", True),
    ("case 4711/3", True),
    ("blacksmith", False),
    ("liver", False),
    ("jo", False),
  ],
)
def test_names_of_classes_are_looked_through(name, told):
  dataset = Dataset()
  dataset.PatientName = "Smith^Jo"
  dataset.PatientID = "4711/3"
  assert privacy.gives_away(name, privacy.identifiers(dataset)) == told


# Whole files.

_TEXTS = {
  "AE": 16,
  "CS": 16,
  "LO": 64,
  "LT": 100,
  "PN": 64,
  "SH": 16,
  "ST": 100,
  "UC": 100,
  "UT": 100,
}
# What readers go by; all other text elements of the dictionary are planted.
_USED = {
  "SpecificCharacterSet",
  "ImageType",
  "SOPClassUID",
  "Modality",
  "PhotometricInterpretation",
  "SegmentationType",
  "SegmentationFractionalType",
  "SegmentLabel",
  "ROIName",
  "ContourGeometricType",
  "NumberOfFrames",
  "PixelPresentation",
}


class Planter:
  """Puts unique texts into elements and remembers them."""

  def __init__(self):
    self.planted = []

  def text(self, most):
    self.planted.append(f"QZX{len(self.planted):05d}")
    return self.planted[-1][:most]

  def everywhere(self, dataset):
    """All text elements that DICOM knows, dates and UIDs, private ones too."""
    seen = set()
    for tag, (
      vr,
      _,
      _,
      retired,
      keyword,
    ) in pydicom._dicom_dict.DicomDictionary.items():
      group = tag >> 16
      if (
        vr in _TEXTS
        and keyword
        and keyword not in _USED
        and retired != "Retired"
        and group not in (0x0002, 0x0004, 0x0000, 0x0028)
        and keyword not in seen
      ):
        setattr(dataset, keyword, self.text(_TEXTS[vr]))
        seen.add(keyword)
    dataset.PatientBirthDate = "19010203"
    self.planted.append("19010203")
    for keyword in ("StudyInstanceUID", "SOPInstanceUID", "SeriesInstanceUID"):
      if keyword in dataset:
        self.planted.append(str(dataset.get(keyword)))
    self.planted.append(str(dataset.get("FrameOfReferenceUID", "1.2.840.9.9")))
    block = dataset.private_block(0x0011, "QZX PRIVATE", create=True)
    block.add_new(1, "LO", self.text(64))
    item = Dataset()
    item.PatientName = self.text(64)
    item.PatientComments = self.text(64)
    inner = Dataset()
    inner.AccessionNumber = self.text(16)
    item.ReferencedStudySequence = Sequence([inner])
    dataset.OtherPatientIDsSequence = Sequence([item])
    dataset.RequestAttributesSequence = Sequence([item])


def plant(folder):
  """A series with masks and a radiograph, and broken ones of each kind."""
  planter = Planter()
  image, labels, affine = volume_files.patient()
  voxels, turned = volume_files.turned(image, affine, "SPL")
  marks, _ = volume_files.turned(labels, affine, "SPL")
  datasets = dicom_files.series(voxels, turned)
  segmentation = dicom_files.segmentation(datasets, marks)
  ring = np.array([[0.0, -12, -60], [9, -12, -60], [9, -21, -60]])
  regions = [("liver", [("CLOSED_PLANAR", ring)])]
  structures = dicom_files.structures(datasets, regions)
  for dataset in (datasets[0], segmentation, structures):
    planter.everywhere(dataset)
  first = datasets[0]
  for dataset in (*datasets[1:], segmentation, structures):
    dataset.PatientName, dataset.PatientID = first.PatientName, first.PatientID
  for name in ("good", "broken"):
    dicom_files.save_series(datasets, folder / name / "images")
  dicom_files.save(segmentation, folder / "good/seg.dcm")
  dicom_files.save(structures, folder / "good/rs.dcm")
  radiograph = dicom_files.new("DX")
  dicom_files.put_pixels(radiograph, np.zeros((20, 20), np.uint16))
  planter.everywhere(radiograph)
  dicom_files.save(radiograph, folder / "good/x.dcm")
  break_all(radiograph, segmentation, structures, planter, folder / "broken")
  return planter.planted


def break_all(radiograph, segmentation, structures, planter, folder):
  def without(dataset, keyword, **changes):
    again = pickle.loads(pickle.dumps(dataset))
    again.SOPInstanceUID = pydicom.uid.generate_uid()
    again.file_meta.MediaStorageSOPInstanceUID = again.SOPInstanceUID
    if keyword:
      delattr(again, keyword)
    for name, value in changes.items():
      setattr(again, name, value)
    return again

  cases = [
    without(radiograph, "PixelData"),
    without(radiograph, "BitsAllocated"),
    without(radiograph, None, Modality=planter.text(16)),
    without(radiograph, None, PhotometricInterpretation=planter.text(16)),
    without(radiograph, None, PixelData=b"QZX"),
    without(segmentation, "SegmentSequence"),
    without(segmentation, "PixelData"),
    without(structures, "StructureSetROISequence"),
  ]
  named = without(structures, None)
  named.StructureSetROISequence[0].ROIName = f"GTV {named.PatientName}"
  renamed = without(segmentation, None)
  renamed.SegmentSequence[0].SegmentLabel = str(segmentation.PatientID)
  for number, dataset in enumerate((*cases, named, renamed)):
    dicom_files.save(dataset, folder / f"{number:02d}.dcm")

  def whole(name):
    return dicom_files.save(without(radiograph, None), folder / name)

  for number, part in enumerate((0.01, 0.1, 0.5, 0.9, 0.999)):
    path = whole(f"cut{number}.dcm")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
  # Values that pydicom complains of while it quotes them.
  for number, (old, new) in enumerate(
    ((b"19010203", b"QZX?0203"), (b"US\x02\x00\x14\x00", b"US\x02\x00QZ"))
  ):
    path = whole(f"odd{number}.dcm")
    path.write_bytes(path.read_bytes().replace(old, new))


def everything_said(path, options, capfd, caplog):
  """All that comes out of a source: values, reprs, faults, logs, streams."""
  faults, texts = [], []
  source = dicom.open_source(path, options)
  texts.append(repr(source))
  with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    for unit in source.units(faults.append):
      texts += [repr(unit), unit.id, unit.group]
      for triplet in unit.triplets(faults.append):
        fields = {**vars(triplet), "image_IJC": "", "masks_GIJ": ""}
        texts.append(repr(fields))
  for fault in faults:
    texts += [str(fault), repr(fault), repr(vars(fault))]
    texts += [repr(fault.__cause__), repr(fault.__context__)]
  texts += [str(w.message) for w in warned]
  texts += list(capfd.readouterr())
  texts.append(caplog.text)
  return faults, "\n".join(texts)


def test_nothing_that_identifies_leaves_the_files(tmp_path, capfd, caplog):
  planted = plant(tmp_path)
  assert len(planted) > 500
  capfd.readouterr()
  for name in ("good", "broken"):
    with caplog.at_level(logging.DEBUG):
      faults, said = everything_said(tmp_path / name, KEYED, capfd, caplog)
    assert len(faults) > 15 if name == "broken" else not faults
    assert "QZX" not in said
    assert not [text for text in planted if text in said]
    assert ("kidney" in said and "liver" in said) == (name == "good")


def test_names_of_files_do_not_leave_either(tmp_path, capfd, caplog):
  dataset = dicom_files.new("DX")
  dicom_files.put_pixels(dataset, np.zeros((20, 20), np.uint16))
  dicom_files.save(dataset, tmp_path / "SMITH^JOHN/smith.dcm")
  (tmp_path / "SMITH^JOHN/smith.txt").write_text("no DICOM")
  _, said = everything_said(tmp_path, KEYED, capfd, caplog)
  assert "smith" not in said.lower()
  assert f"{tmp_path}#2" in said
  kept = sources.Options(keep_identifiers=True, unlabelled="keep")
  _, said = everything_said(tmp_path, kept, capfd, caplog)
  assert "smith.txt" in said


def test_identifiers_come_out_when_they_are_asked_for(tmp_path):
  dataset = dicom_files.new("DX")
  dicom_files.put_pixels(dataset, np.zeros((20, 20), np.uint16))
  dicom_files.save(dataset, tmp_path / "a.dcm")
  kept = sources.Options(keep_identifiers=True, unlabelled="keep")
  triplets, _ = volume_files.read(dicom.open_source(tmp_path, kept))
  assert triplets[0].id == dataset.SOPInstanceUID
  assert triplets[0].group == "4711"


def test_one_patient_is_one_group_under_one_key(tmp_path):
  for name, patient in (("a", "4711"), ("b", "4711"), ("c", "4712")):
    dataset = dicom_files.new("DX", PatientID=patient)
    dicom_files.put_pixels(dataset, np.zeros((20, 20), np.uint16))
    dicom_files.save(dataset, tmp_path / name / "a.dcm")
  groups = {
    name: volume_files.read(dicom.open_source(tmp_path / name, KEYED))[0][
      0
    ].group
    for name in "abc"
  }
  assert groups["a"] == groups["b"] != groups["c"]
  other = dicom.open_source(
    pathlib.Path(tmp_path / "a"), sources.Options(unlabelled="keep")
  )
  assert volume_files.read(other)[0][0].group != groups["a"]
