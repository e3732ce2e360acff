"""`rcmed predict` on files, folders and volumes, with an assistant that sees
brightness."""

import csv
import hashlib
import json
import shutil
import types

import cv2
import dicom_files
import fake_assistant
import nibabel
import numpy as np
import pydicom
import pytest
import volume_files

from rcmed_jax import cli
from rcmed_jax.apps import (
  answering,
  predict_jobs,
  predict_one,
  predict_tasks,
  runs,
)
from rcmed_jax.data import pipeline, prompts

PROMPT = "Where is the spleen in this MRI image?"
MR = ("--modality", "magnetic resonance")


@pytest.fixture
def fake(monkeypatch):
  """The assistant that every call gets, and `loads`, how often one was made."""
  fake = fake_assistant.Fake()
  fake.loads = []

  def load(workdir, **kwargs):
    fake.loads.append(kwargs)
    return fake

  monkeypatch.setattr(answering, "load_assistant", load)
  return fake


def predict(*args, prompt=PROMPT):
  asked = ("--prompt", prompt) if prompt else ()
  return cli.main(["predict", "--workdir", "none", *asked, *map(str, args)])


def answer(out):
  return json.loads((out / "answer.json").read_text())


def manifest(out):
  held = json.loads((out / predict_jobs.MANIFEST).read_text())
  counts = dict(held["counts"])
  assert counts.pop("jobs") == len(held["jobs"]) == sum(counts.values())
  return {job["out"]: job for job in held["jobs"]}, counts


def draw(path, **kwargs):
  path.parent.mkdir(parents=True, exist_ok=True)
  cv2.imwrite(str(path), fake_assistant.picture(**kwargs))
  return path


def save_nifti(path, code="RAS"):
  image, labels, affine = volume_files.patient()
  path.parent.mkdir(parents=True, exist_ok=True)
  nibabel.save(
    nibabel.Nifti1Image(*volume_files.turned(image, affine, code)), path
  )
  return volume_files.turned(labels, affine, code)[0]


def test_a_picture_gives_what_it_always_gave(fake, tmp_path, capsys):
  image = draw(tmp_path / "a.png")
  out = tmp_path / "out"
  assert predict("--image", image, "--out", out, "--describe") == 0
  assert sorted(path.name for path in out.iterdir()) == [
    "answer.json",
    "mask-0-spleen.png",
    "overlay.png",
  ]
  held = answer(out)
  assert held.pop("options")["describe"]
  digest = hashlib.sha256(image.read_bytes()).hexdigest()
  assert held.pop("input_sha256") == digest
  assert held == {
    "image": str(image),
    "prompt": PROMPT,
    "text": "spleen",
    "modality": "magnetic resonance",
    "targets": [
      {
        "class": "spleen",
        "present": True,
        "confidence": 0.5,
        "box_xyxy": [10, 8, 20, 16],
        "mask": "mask-0-spleen.png",
      },
      {
        "class": "heart",
        "present": False,
        "confidence": 0.0,
        "box_xyxy": None,
        "mask": None,
      },
    ],
  }
  mask_IJ = cv2.imread(str(out / "mask-0-spleen.png"), 0)
  assert mask_IJ.shape == (32, 32) and (mask_IJ > 0).sum() == 80
  assert fake.asked == [(PROMPT, True)]
  said = capsys.readouterr().out
  assert "spleen: box (10, 8, 20, 16), confidence 0.50" in said
  assert "heart: absent" in said


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "dcm"])
def test_pictures_of_all_kinds_are_answered(fake, tmp_path, kind):
  image, out = tmp_path / f"a.{kind}", tmp_path / "out"
  if kind == "dcm":
    made = dicom_files.new("US")
    dicom_files.put_pixels(made, fake_assistant.picture(), "RGB")
    dicom_files.save(made, image)
  else:
    draw(image)
  assert predict("--image", image, "--out", out) == 0
  spleen = answer(out)["targets"][0]
  assert spleen["class"] == "spleen" and spleen["present"]
  if kind == "dcm":
    mask_IJ = pydicom.dcmread(out / spleen["mask"]).pixel_array
  else:
    mask_IJ = cv2.imread(str(out / spleen["mask"]), 0)
  assert (mask_IJ > 0).sum() == pytest.approx(80, abs=8)  # JPEG has edges


def test_an_earlier_answer_goes_and_nothing_else(fake, tmp_path):
  out = tmp_path / "out"
  save_nifti(tmp_path / "scan.nii")
  assert predict("--image", tmp_path / "scan.nii", *MR, "--out", out) == 0
  mine = [out / "mask-9-mine.nii.gz", out / "overlay.txt"]
  for path in mine:
    path.write_text("mine")
  held = answer(out)
  held["targets"] += [{"class": "x", "mask": "../scan.nii"}, "y"]
  (out / "answer.json").write_text(json.dumps(held))
  image = draw(tmp_path / "a.png")
  assert predict("--image", image, "--out", out) == 0
  assert sorted(path.name for path in out.iterdir()) == [
    "answer.json",
    "mask-0-spleen.png",
    "mask-9-mine.nii.gz",
    "overlay.png",
    "overlay.txt",
  ]
  assert (tmp_path / "scan.nii").is_file()


def test_a_nifti_volume_gives_masks_on_its_grid(fake, tmp_path, capsys):
  image = tmp_path / "scan.nii.gz"
  labels = save_nifti(image, "LSP")
  out = tmp_path / "out"
  assert predict("--image", image, *MR, "--out", out, "--batch", 4) == 0
  assert fake.loads[0]["rows"] == 4
  held = answer(out)
  found = {target["class"]: target for target in held["targets"]}
  for value, name in ((1, "kidney"), (2, "spleen")):
    mask = nibabel.load(out / found[name]["mask"])
    np.testing.assert_array_equal(mask.affine, nibabel.load(image).affine)
    np.testing.assert_array_equal(mask.get_fdata() > 0, labels == value)
    shown_IJC = cv2.imread(str(out / found[name]["overlay"]))
    assert shown_IJC.shape == (24, 40, 3)  # pixels of 0.75 mm x 1.5 mm
    assert np.ptp(shown_IJC, axis=2).max() > 20  # something is coloured
  assert found["heart"] == {
    "class": "heart",
    "present": False,
    "confidence": 0.0,
    "box_voxels": None,
    "ml": None,
    "mask": None,
  }
  assert found["spleen"]["ml"] == pytest.approx(128 * 4.5 / 1000)
  map_ = nibabel.load(out / held["labels"]).get_fdata()
  np.testing.assert_array_equal(map_ > 0, labels > 0)
  assert held["timings"]["slices"] == 18
  timings = held["timings"]
  assert timings["seconds"] >= timings["seconds_to_first"] > 0
  assert timings["seconds_per_slice"] == pytest.approx(
    timings["seconds"] / 18, abs=1e-3
  )
  assert sum(one["slices"] for one in held["texts"]) == 18
  said = capsys.readouterr().out
  assert f"confidence 0.50, {128 * 4.5 / 1000:.1f} ml" in said
  assert "predict: 18 slices in " in said


def _every_orientation(tmp_path, turn):
  """(image, answer's folder, labels) of 48 files, each asked about once.

  Args:
    turn: by which axis the first is looked at; the others take turns.
  """
  rows, labels = [], {}
  for number, code in enumerate(volume_files.CODES):
    labels[code] = save_nifti(tmp_path / f"{code}.nii.gz", code)
    axis = ("axial", "coronal", "sagittal")[(number + turn) % 3]
    rows.append({"image": f"{code}.nii.gz", "name": code, "axis": axis})
  listed = tmp_path / "jobs.json"
  listed.write_text(json.dumps(rows))
  assert predict("--jobs", listed, *MR, "--out", tmp_path / "out") == 0
  for code in volume_files.CODES:
    out = tmp_path / "out" / code
    yield tmp_path / f"{code}.nii.gz", out, labels[code]


# `volumes_test` has turn 0: all axes of all orientations are tried.
@pytest.mark.parametrize("turn", [1, 2])
def test_masks_lie_on_the_grid_of_any_file(fake, tmp_path, turn):
  for path, out, labels in _every_orientation(tmp_path, turn):
    image = nibabel.load(path)
    held = answer(out)
    names = [target["class"] for target in held["targets"]]
    for value, name in ((1, "kidney"), (2, "spleen")):
      place = names.index(name)
      mask = nibabel.load(out / held["targets"][place]["mask"])
      assert mask.shape == image.shape
      assert mask.header.get_zooms() == image.header.get_zooms()
      np.testing.assert_array_equal(mask.affine, image.affine)
      np.testing.assert_array_equal(np.asarray(mask.dataobj), labels == value)
      all_ = nibabel.load(out / held["labels"])
      np.testing.assert_array_equal(all_.affine, image.affine)
      np.testing.assert_array_equal(
        np.asarray(all_.dataobj) == place + 1, labels == value
      )


def test_simpleitk_finds_masks_on_the_same_grid(fake, tmp_path):
  itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not there")
  for path, out, labels in _every_orientation(tmp_path, 0):
    image = itk.ReadImage(str(path))
    for target in answer(out)["targets"]:
      if target["mask"]:
        mask = itk.ReadImage(str(out / target["mask"]))
        assert mask.GetSize() == image.GetSize()
        assert mask.GetSpacing() == image.GetSpacing()
        assert mask.GetOrigin() == image.GetOrigin()
        assert mask.GetDirection() == image.GetDirection()
        value = {"kidney": 1, "spleen": 2}[target["class"]]
        np.testing.assert_array_equal(
          itk.GetArrayFromImage(mask).T > 0, labels == value
        )


def test_clean_up_and_axis_are_asked_for(fake, tmp_path):
  image = tmp_path / "scan.nii"
  save_nifti(image)
  out = tmp_path / "out"
  told = ("--axis", "coronal", "--min-mm3", 140 * 4.5, "--largest", "--smooth")
  assert predict("--image", image, *MR, *told, "--out", out) == 0
  held = answer(out)
  assert [one["class"] for one in held["targets"] if one["present"]] == [
    "kidney"
  ]
  assert held["timings"]["slices"] == 24
  # With --skip-existing the same question is not asked again, another is.
  asked = len(fake.asked)
  told = ("--skip-existing", *told)
  assert predict("--image", image, *MR, *told, "--out", out) == 0
  assert len(fake.asked) == asked
  assert predict("--image", image, *MR, *told[:3], "--out", out) == 0
  assert len(fake.asked) == asked + 24
  assert answer(out)["targets"][1]["present"]


def test_a_series_gives_a_segmentation_and_tells_of_nobody(fake, tmp_path):
  _, datasets = dicom_files.save_patient(tmp_path / "Doe^Jane")
  out = tmp_path / "out"
  assert predict("--image", tmp_path / "Doe^Jane", "--out", out) == 0
  held = answer(out)
  found = {target["class"]: target for target in held["targets"]}
  made = pydicom.dcmread(out / found["spleen"]["mask"])
  label = made.SegmentSequence[found["spleen"]["segment"] - 1]
  assert label.SegmentLabel == "spleen"
  assert label.SegmentedPropertyTypeCodeSequence[0].CodeValue == "78961009"
  assert made.StudyInstanceUID == datasets[0].StudyInstanceUID
  assert found["spleen"]["ml"] == pytest.approx(128 * 4.5 / 1000)
  text = (out / "answer.json").read_text()
  names = " ".join(path.name for path in out.iterdir())
  for secret in (
    "Doe",
    "Jane",
    "4711",
    "19700101",
    datasets[0].SeriesInstanceUID,
  ):
    assert secret not in text and secret not in names
  # One of its files is a series too: of one slice.
  one = tmp_path / "one"
  assert predict("--image", tmp_path / "Doe^Jane/005.dcm", "--out", one) == 0
  assert answer(one)["timings"]["slices"] == 1


def test_contours_of_a_series_are_written_where_asked(fake, tmp_path, capsys):
  labels, datasets = dicom_files.save_patient(tmp_path / "in")
  out = tmp_path / "out"
  told = ("--image", tmp_path / "in", "--out", out, "--skip-existing")
  assert predict(*told) == 0
  assert answer(out)["structures"] is None
  asked = len(fake.asked)
  assert predict(*told, "--rtstruct") == 0
  assert len(fake.asked) == 2 * asked  # the same question, other files
  held = answer(out)
  made = pydicom.dcmread(out / held["structures"])
  assert {
    roi.ROIName: roi.ROINumber for roi in made.StructureSetROISequence
  } == {
    target["class"]: target["segment"]
    for target in held["targets"]
    if target["present"]
  }
  assert made.StudyInstanceUID == datasets[0].StudyInstanceUID
  shown = {
    contour.ContourImageSequence[0].ReferencedSOPInstanceUID
    for item in made.ROIContourSequence
    for contour in item.ContourSequence
  }
  assert shown == {
    dataset.SOPInstanceUID
    for dataset, labels_IJ in zip(datasets, labels, strict=True)
    if labels_IJ.any()
  }
  # Asked without, an earlier one goes.
  assert predict(*told) == 0
  assert not (out / held["structures"]).exists()
  # Of what is no series there are none.
  picture = draw(tmp_path / "a.png")
  assert predict("--image", picture, "--rtstruct", "--out", out) == 2
  assert "--rtstruct draws contours on a DICOM" in capsys.readouterr().err


def test_other_weights_are_asked_for(fake, tmp_path):
  told = ("--image", draw(tmp_path / "a.png"), "--out", tmp_path / "out")
  for flags in ((), ("--averaged",), ("--best",)):
    assert predict(*told, *flags) == 0
  found = [(load["averaged"], load["best"]) for load in fake.loads]
  assert found == [(False, False), (True, False), (False, True)]


def test_a_radiograph_that_lies_nowhere_is_answered_too(fake, tmp_path):
  made = dicom_files.new("DX", PixelSpacing=[0.5, 0.5])
  del made.FrameOfReferenceUID
  pixels_IJ = fake_assistant.picture()[..., 0].astype(np.uint16) * 10
  dicom_files.put_pixels(made, pixels_IJ)
  dicom_files.save(made, tmp_path / "x.dcm")
  out = tmp_path / "out"
  assert predict("--image", tmp_path / "x.dcm", "--out", out) == 0
  spleen = answer(out)["targets"][0]
  assert spleen["ml"] is None and spleen["present"]
  frames = pydicom.dcmread(out / spleen["mask"]).pixel_array
  assert frames.sum() == 80


@pytest.fixture
def mixed(tmp_path):
  """A folder of all kinds, and two that are of none."""
  folder = tmp_path / "in"
  draw(folder / "a.png")
  save_nifti(folder / "b_mri.nii.gz")
  dicom_files.save_patient(folder / "Doe^Jane")
  draw(folder / "deep/c.jpg", side=64)
  (folder / "broken.nii").write_bytes(b"nothing" * 100)
  (folder / "notes.txt").write_text("no picture")
  return folder


def test_a_bad_file_does_not_stop_the_others(fake, mixed, tmp_path, capsys):
  out = tmp_path / "out"
  assert predict("--image", mixed, "--out", out) == 1
  jobs, counts = manifest(out)
  assert counts == {"waiting": 0, "done": 3, "failed": 2, "skipped": 0}
  assert {name for name, job in jobs.items() if job["state"] == "done"} == {
    "a.png",
    "b_mri.nii.gz",
    "dicom-0001",
  }
  assert "no sound NIfTI" in jobs["broken.nii"]["reason"]
  assert "this is no image" in jobs["notes.txt"]["reason"]
  assert (out / "a.png/mask-0-spleen.png").is_file()
  assert not (out / "broken.nii").exists()
  assert len(fake.loads) == 1
  assert "5 jobs = 3 done + 2 failed + 0 skipped" in capsys.readouterr().out


def test_a_pattern_chooses_and_what_is_done_is_skipped(fake, mixed, tmp_path):
  out = tmp_path / "out"
  told = ("--image", mixed, "--out", out, "--skip-existing", "--pattern")
  assert predict(*told, "**/*.jpg") == 0
  assert manifest(out)[1]["done"] == 1
  asked = len(fake.asked)
  assert predict(*told, "**/*.[jp][pn]g") == 0
  jobs, counts = manifest(out)
  assert counts == {"waiting": 0, "done": 1, "failed": 0, "skipped": 1}
  assert jobs["deep/c.jpg"]["state"] == "skipped"
  assert len(fake.asked) == asked + 1
  # Where nothing is left to ask, nothing is loaded.
  assert predict(*told, "**/*.[jp][pn]g") == 0
  assert len(fake.loads) == 2
  # Another question is another job.
  assert predict(*told, "**/*.jpg", prompt="Where is the kidney?") == 0
  assert manifest(out)[1]["done"] == 1


def test_a_stopped_run_goes_on(fake, mixed, tmp_path, monkeypatch):
  out = tmp_path / "out"
  whole = type(fake).ask

  def stopped(self, image_IJC, text, **kwargs):
    if len(self.asked) == 20:  # in the middle of the NIfTI volume
      raise KeyboardInterrupt
    return whole(self, image_IJC, text, **kwargs)

  told = ("--image", mixed, "--out", out, "--skip-existing")
  monkeypatch.setattr(type(fake), "ask", stopped)
  with pytest.raises(KeyboardInterrupt):
    predict(*told)
  jobs, counts = manifest(out)
  assert counts["done"] >= 1 and counts["waiting"] >= 1
  begun = {name for name in jobs if (out / name / "answer.json").is_file()}
  assert begun == {n for n, job in jobs.items() if job["state"] == "done"}
  monkeypatch.setattr(type(fake), "ask", whole)
  assert predict(*told) == 1
  after, counts = manifest(out)
  assert list(after) == list(jobs)  # numbers of DICOM too
  assert counts == {
    "waiting": 0,
    "done": 3 - len(begun),
    "failed": 2,
    "skipped": len(begun),
  }


def test_files_of_a_series_are_no_jobs_of_their_own(fake, mixed, tmp_path):
  out = tmp_path / "out"
  assert predict("--image", mixed, "--out", out, "--pattern", "**/*") == 1
  jobs, counts = manifest(out)
  assert "dicom-0002" not in jobs and "deep/c.jpg" in jobs
  assert (counts["done"], counts["failed"]) == (4, 2)


def test_numbers_of_series_stay_when_others_come(fake, tmp_path):
  out = tmp_path / "out"
  for number, name in enumerate(("Moe^Max", "Doe^Jane")):
    dicom_files.save_patient(tmp_path / "in" / name)
    told = ("--image", tmp_path / "in", "--out", out, "--skip-existing")
    assert predict(*told) == 0
    jobs, counts = manifest(out)
    assert jobs["dicom-0001"]["image"].endswith("Moe^Max")
    assert (counts["done"], counts["skipped"]) == (1, number)


def test_an_answer_about_another_image_is_not_skipped(fake, tmp_path):
  out = tmp_path / "out"
  told = ("--out", out, "--skip-existing")
  one, two = draw(tmp_path / "a.png"), draw(tmp_path / "b.png", side=48)
  for image, count in ((one, 1), (two, 2), (two, 2), (one, 3)):
    assert predict("--image", image, *told) == 0
    assert len(fake.asked) == count
  assert answer(out)["image"] == str(one)
  # The same file at another place is the same image; another question is not.
  shutil.copy(one, tmp_path / "copy.png")
  assert predict("--image", tmp_path / "copy.png", *told) == 0
  assert len(fake.asked) == 3
  assert predict("--image", one, "--describe", *told) == 0
  assert len(fake.asked) == 4


def test_voxels_beside_their_header_are_part_of_the_image(tmp_path):
  header = tmp_path / "scan.hdr"
  header.write_bytes(b"header")
  voxels = tmp_path / "scan.img"
  found = set()
  for content in (b"one", b"two"):
    voxels.write_bytes(content)
    found.add(predict_one.identity(header))
  detached = tmp_path / "other.nhdr"
  detached.write_bytes(b"NRRD0004\ndata file: scan.img\n")
  for content in (b"one", b"two"):
    voxels.write_bytes(content)
    found.add(predict_one.identity(detached))
  assert len(found) == 4
  assert predict_one.identity(tmp_path / "none") == ""


def test_a_number_is_of_one_series_for_ever(fake, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for place in ("one/A", "one/B", "two/C"):
    dicom_files.save_patient(tmp_path / place)
  out = tmp_path / "out"
  told = ("--out", out, "--skip-existing")
  assert predict("--image", "one", *told) == 0
  jobs, _ = manifest(out)
  name = next(n for n, job in jobs.items() if job["image"].endswith("B"))
  before = (out / name / "answer.json").read_bytes()
  assert predict("--image", "one", *told, "--pattern", "A") == 0
  assert predict("--image", "two", *told) == 0
  jobs, counts = manifest(out)
  assert jobs.keys() == {"dicom-0003"} and counts["done"] == 1
  assert (out / name / "answer.json").read_bytes() == before
  # B is known still, from another folder too.
  monkeypatch.chdir(tmp_path / "one")
  assert predict("--image", ".", "--pattern", "B", *told) == 0
  assert manifest(out)[0].keys() == {name}
  # A manifest that is lost frees no number.
  (out / predict_jobs.MANIFEST).unlink()
  monkeypatch.chdir(tmp_path)
  assert predict("--image", "two", "--out", out) == 0
  assert manifest(out)[0].keys() == {"dicom-0004"}
  assert (out / name / "answer.json").read_bytes() == before


def test_a_series_in_the_place_of_another_is_asked_about(fake, tmp_path):
  out = tmp_path / "out"
  told = ("--image", tmp_path / "in", "--out", out, "--skip-existing")
  for count in (1, 2):
    shutil.rmtree(tmp_path / "in", ignore_errors=True)
    dicom_files.save_patient(tmp_path / "in/A")
    assert predict(*told) == 0
    assert manifest(out)[1]["done"] == 1, count
  assert predict(*told) == 0
  assert manifest(out)[1]["skipped"] == 1


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_jobs_come_from_a_file(fake, mixed, tmp_path, kind):
  listed = mixed / f"jobs.{kind}"
  rows = [
    {"image": "a.png", "prompt": "Where is the kidney?", "name": "first"},
    {"image": "b_mri.nii.gz", "prompt": "", "axis": "sagittal"},
    {"image": "deep/c.jpg", "axis": "upwards"},
    {"image": "gone (1).png"},
  ]
  if kind == "json":
    listed.write_text(json.dumps(rows))
  else:
    with listed.open("w", newline="") as file:
      names = ["image", "prompt", "name", "axis"]
      writer = csv.DictWriter(file, names, restval="")
      writer.writeheader()
      writer.writerows(rows)
  out = tmp_path / "out"
  assert predict("--jobs", listed, "--out", out) == 1
  jobs, counts = manifest(out)
  assert list(jobs) == ["first", "b_mri.nii.gz", "deep_c.jpg", "gone_1_.png"]
  assert counts == {"waiting": 0, "done": 2, "failed": 2, "skipped": 0}
  assert answer(out / "first")["prompt"] == "Where is the kidney?"
  assert answer(out / "b_mri.nii.gz")["timings"]["slices"] == 20
  assert "upwards" in jobs["deep_c.jpg"]["reason"]
  assert "no such file" in jobs["gone_1_.png"]["reason"]


@pytest.mark.parametrize(
  ("rows", "said"),
  [
    ([], "holds no job"),
    ([{"image": "a.png", "promt": "x"}], "'promt' is none of image, prompt"),
    ([{"prompt": "x"}], "it has no image"),
    ([{"image": "a.png", "name": "../a"}], "'../a' names no folder"),
    ([{"image": "a.png"}, {"image": "a.png"}], "are those of several jobs"),
    ([{"image": 1}], "is no list of jobs"),
    ({"image": "a.png"}, "is no list of jobs"),
  ],
)
def test_a_wrong_list_of_jobs_is_refused(fake, tmp_path, capsys, rows, said):
  listed = tmp_path / "jobs.json"
  listed.write_text(json.dumps(rows))
  assert predict("--jobs", listed, "--out", tmp_path / "out") == 2
  assert said in capsys.readouterr().err


def test_a_job_without_a_prompt_fails_alone(fake, tmp_path):
  draw(tmp_path / "a.png")
  rows = [{"image": "a.png"}, {"image": "a.png", "name": "b", "prompt": "x"}]
  listed = tmp_path / "jobs.json"
  listed.write_text(json.dumps(rows))
  out = tmp_path / "out"
  assert predict("--jobs", listed, "--out", out, prompt="") == 1
  jobs, counts = manifest(out)
  assert "no prompt" in jobs["a.png"]["reason"]
  assert (counts["done"], counts["failed"]) == (1, 1)


def test_pictures_are_asked_about_together_and_refused_alone(fake, tmp_path):
  fake.rows = 3
  together = []
  many = fake.ask_many
  fake.ask_many = lambda questions: (
    together.append(len(questions)) or many(questions)
  )
  for number in range(7):
    draw(tmp_path / f"{number}.png", side=20 + number)
  rows = [{"image": f"{number}.png"} for number in range(7)]
  rows[4]["prompt"] = "   "
  listed = tmp_path / "jobs.json"
  listed.write_text(json.dumps(rows))
  out = tmp_path / "out"
  assert predict("--jobs", listed, "--out", out, "--batch", 3) == 1
  jobs, counts = manifest(out)
  assert together == [3, 3]
  assert (counts["done"], counts["failed"]) == (6, 1)
  assert "no text" in jobs["4.png"]["reason"]
  for number in {*range(7)} - {4}:
    shown_IJC = cv2.imread(str(out / f"{number}.png/overlay.png"))
    assert shown_IJC.shape[0] == 20 + number


def test_either_an_image_or_jobs(fake, tmp_path, capsys):
  for told in (
    (),
    ("--image", "a", "--jobs", "b"),
    ("--image", "a"),
    ("--json",),
  ):
    with pytest.raises(SystemExit):
      predict(*told, prompt="")
  assert "give --image or --jobs" in capsys.readouterr().err


def test_a_description_needs_no_prompt(fake, tmp_path):
  told = ("--image", draw(tmp_path / "a.png"), "--out", tmp_path / "out")
  assert predict(*told, "--describe", prompt="") == 0
  assert fake.asked == [(prompts.description_question(0), True)]


def test_a_file_has_no_pattern(fake, tmp_path, capsys):
  image = draw(tmp_path / "a.png")
  assert predict("--image", image, "--pattern", "*") == 2
  assert "--pattern is of a folder" in capsys.readouterr().err


def _record(monkeypatch, **data):
  """Makes every folder a run of these data."""
  told = types.SimpleNamespace(data=pipeline.DataConfig(**data))
  monkeypatch.setattr(runs, "recorded", lambda workdir: told)


def test_tasks_are_those_of_the_registry_without_training_data(
  monkeypatch, capsys
):
  _record(monkeypatch, index="gone.json")
  assert predict("--list-tasks", "--json", prompt="") == 0
  held = json.loads(capsys.readouterr().out)
  assert "not here" in held["source"]
  assert {"modality": "computed tomography", "class": "liver"} in held["tasks"]
  assert predict("--list-tasks", prompt="") == 0
  assert "computed tomography: liver\n" in capsys.readouterr().out
  assert predict_tasks.trained("none") == {}  # of the run itself, nothing


def test_tasks_are_those_that_the_run_was_trained_on(
  monkeypatch, tmp_path, capsys
):
  index = {}
  for name in ("mr--mine--1", "pet--mine--2"):
    draw(tmp_path / f"{name}.png")
    mask_IJ = (fake_assistant.picture()[..., 0] > 200).astype(np.uint8) * 255
    cv2.imwrite(str(tmp_path / f"{name}_mask.png"), mask_IJ)
    index[f"{name}.png"] = [{f"{name}_mask.png": "spleen"}]
  path = tmp_path / "index.json"
  path.write_text(json.dumps(index))
  _record(monkeypatch, index=str(path))
  assert predict("--list-tasks", "--json", prompt="") == 0
  held = json.loads(capsys.readouterr().out)
  assert held == {
    "source": predict_tasks.TRAINED,
    "tasks": [
      {"modality": "magnetic resonance", "class": "spleen", "images": 1},
      {"modality": "pet", "class": "spleen", "images": 1},
    ],
  }
  assert predict_tasks.trained("none") == {
    "magnetic resonance": ("spleen",),
    "pet": ("spleen",),
  }


def save_ct(path):
  """A NIfTI of Hounsfield units that nothing says to be of CT."""
  image, _, affine = volume_files.patient()
  nibabel.save(nibabel.Nifti1Image(image - np.int16(1024), affine), path)
  return path


def test_hounsfield_units_of_nobody_knows_what_are_refused(
  fake, tmp_path, capsys
):
  told = ("--image", save_ct(tmp_path / "a.nii"), "--out", tmp_path / "out")
  prompt = "Where is the liver?"
  assert predict(*told, prompt=prompt) == 2
  said = capsys.readouterr().err
  assert "looks like Hounsfield units; say --modality CT" in said
  assert not fake.asked
  assert predict(*told, "--window", "percentiles", prompt=prompt) == 0
  assert answer(tmp_path / "out")["shown"] == {
    "modality": "unknown",
    "window": "percentiles",
    "why": "asked for",
  }
  assert predict(*told, "--modality", "Computed Tomograhpy") == 2
  assert "did you mean 'computed tomography'" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("trained", "window"), [([], "liver"), (["soft tissue"], "soft tissue")]
)
def test_a_run_is_asked_in_the_window_that_it_learnt_in(
  fake, tmp_path, capsys, trained, window
):
  image = save_ct(tmp_path / "a.nii")
  run, out = tmp_path / "run", tmp_path / "out"
  run.mkdir()
  (run / "run.json").write_text(json.dumps({"starts": [{"windows": trained}]}))
  text = "Where is the liver in this computed tomography image?"
  told = ("--image", image, "--out", out, "--workdir", run)
  assert predict(*told, prompt=text) == 0
  shown = answer(out)["shown"]
  assert (shown["modality"], shown["window"]) == ("computed tomography", window)
  assert f"computed tomography, window {window}:" in capsys.readouterr().out
  asked = len(fake.asked)
  assert predict(*told, "--skip-existing", prompt=text) == 0
  assert len(fake.asked) == asked


def test_a_series_that_lacks_a_slice_is_refused(fake, tmp_path, capsys):
  folder, out = tmp_path / "in", tmp_path / "out"
  dicom_files.save_patient(folder)
  last = sorted(folder.iterdir())[-1]
  last.write_bytes(last.read_bytes()[:200])
  assert predict("--image", folder, "--out", out) == 2
  said = capsys.readouterr().err
  assert "1 of its files cannot be read, and slices may be missing" in said
  assert f"{folder}#" in said and "Get them again" in said
  assert not out.exists() and not fake.asked
  (folder / ".DS_Store").write_bytes(b"Bud1")
  last.unlink()
  assert predict("--image", folder, "--out", out) == 0
