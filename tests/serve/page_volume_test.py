"""Volumes on the page, in a browser: masks lie in the body where they should.

That some pixels change is not enough: with another affine a mask is drawn
beside the body.
"""

import gzip
import io

import browsing
import dicom_files
import fake_assistant
import highdicom
import nibabel
import numpy as np
import pytest
import requests
from scipy import spatial
import served
import volume_files

from rcmed_jax.apps import serve_volumes

pytestmark = pytest.mark.heavy

SHAPE = (48, 40, 20)  # voxels to the right, front and head
SPACING = (2.0, 2.5, 4.0)
# Of the mark, in the patient's right, front and upper half.
MARK = ((27, 36), (20, 29), (10, 15))
# A file of its own for each; the page must show all of them alike.
CODES = ("LAS", "PIR")


@pytest.fixture(scope="module")
def browser():
  with browsing.chromium() as found:
    yield found


@pytest.fixture(scope="module")
def at(browser):
  fake = fake_assistant.Fake({"spleen": fake_assistant.GREYS["spleen"]})
  with served.running(
    served.Assistant(answer=fake.answer),
    write_answer=serve_volumes.write_answer,
    classes=("spleen",),
  ) as found:
    yield found


def patient(code):
  """Voxels, labels and affine of an ellipsoid with a bright box inside."""
  middle = (np.array(SHAPE) - 1) / 2
  places = np.moveaxis(np.indices(SHAPE), 0, -1) - middle
  inside = ((places / (middle * 0.9)) ** 2).sum(-1) < 1
  labels = np.zeros(SHAPE, np.uint8)
  labels[tuple(slice(*sides) for sides in MARK)] = 1
  assert inside[labels > 0].all()
  grain = np.random.default_rng(0).integers(300, 1500, SHAPE)
  image = np.where(inside, grain, 0).astype(np.int16)
  image[labels > 0] = 3000
  affine = np.diag([*SPACING, 1.0])
  affine[:3, 3] = -30, 20, -50
  voxels, turned = volume_files.turned(image, affine, code)
  return voxels, volume_files.turned(labels, affine, code)[0], turned


def nifti(code, oblique=False):
  voxels, labels, affine = patient(code)
  if oblique:
    turn = np.eye(4)
    angles = {"degrees": True, "angles": (18, -12, 9)}
    turn[:3, :3] = spatial.transform.Rotation.from_euler(
      "xyz", **angles
    ).as_matrix()
    affine = turn @ affine
  made = nibabel.Nifti1Image(voxels, affine)
  made.header.set_xyzt_units("mm")
  return gzip.compress(made.to_bytes(), 1), labels, affine


def expected(axes):
  """x0, y0, x1, y1 of the mark in parts of the body's box on the screen.

  Args:
    axes: of the patient, across and down: the screen's left is the patient's
      right, or front; its top is the front, or head.
  """
  low, high = [], []
  for axis in axes:
    # The ellipsoid's axis is 0.9 of half the grid's.
    half = (SHAPE[axis] - 1) / 2
    edges = np.array(MARK[axis]) - 0.5 - half
    first, last = edges / (half * 0.9)
    low.append((1 - last) / 2)
    high.append((1 - first) / 2)
  return np.array([*low, *high])


def check_place(page, layout, axes):
  """Whether the mark is drawn where it lies in the body, on one slice."""
  page.get_by_role("radio", name=layout).check(force=True)
  page.get_by_role("button", name="Go to spleen").click()
  page.locator("#targets input").uncheck()
  before = browsing.shot(page, "#volume")
  page.locator("#targets input").check()
  after = browsing.shot(page, "#volume")
  differs = np.abs(after - before).max(2) > 20
  x0, y0, x1, y1 = browsing.box(browsing.body(before))
  size = np.array([x1 - x0, y1 - y0] * 2)
  found = (browsing.box(differs) - [x0, y0, x0, y0]) / size
  # The slice through the mark is smaller than the body's largest; both are
  # known, so that only how its edge is drawn remains.
  np.testing.assert_allclose(found, _on_slice(axes), atol=0.04)
  tint = (after - before)[differs].mean(0)
  assert tint[2] > tint[0] + 20  # blue came and red went


def _on_slice(axes):
  """`expected`, in parts of the body's box on the slice through the mark."""
  (through,) = {0, 1, 2} - set(axes)
  half = (SHAPE[through] - 1) / 2
  at = ((MARK[through][0] + MARK[through][1] - 1) / 2 - half) / (half * 0.9)
  smaller = np.sqrt(1 - at**2)
  return (expected(axes) - 0.5) / smaller + 0.5


@pytest.mark.parametrize("code", CODES)
def test_masks_are_seen_in_the_body_where_they_lie(browser, at, code):
  data, labels, affine = nifti(code)
  with browsing.page(browser, at.url + "/") as page:
    browsing.open_files(page, [("scan.nii.gz", data)])
    browsing.ask(page, "Where is the spleen?")
    # What is there comes before what is not, whatever was said first.
    row = page.locator("#targets li").first.inner_text()
    ml = labels.sum() * np.prod(SPACING) / 1000
    assert "spleen" in row and f"{ml:.3g} ml" in row and "50 %" in row
    assert "heart" in page.locator("#targets").inner_text()
    check_place(page, "Axial", (0, 1))
    if code == CODES[-1]:
      check_place(page, "Coronal", (0, 2))
      check_place(page, "Sagittal", (1, 2))
    click = page.get_by_role("button", name="Save the mask of spleen").click
    name, data = browsing.saved(page, click)
    assert name == "spleen.nii.gz"
    found = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    np.testing.assert_array_equal(found.affine, affine)
    np.testing.assert_array_equal(found.get_fdata(), labels)


def test_slices_renderings_and_follow_ups(browser, at):
  data, _, _ = nifti("LAS", oblique=True)
  with browsing.page(browser, at.url + "/", faults=("404",)) as page:
    browsing.open_files(page, [("scan.nii.gz", data)])
    assert page.locator("#sliders input").count() == 3
    page.get_by_role("radio", name="Axial").check(force=True)
    first = browsing.shot(page, "#volume")
    page.locator("#slice-axial").focus()
    page.keyboard.press("End")
    assert page.locator("#sliders output").inner_text() == "20 / 20"
    last = browsing.shot(page, "#volume")
    assert browsing.body(first).sum() > 1.5 * browsing.body(last).sum()
    browsing.ask(page, "Where is the spleen?")
    browsing.ask(page, "And once more?")
    assert page.locator("#targets li").count() == 2
    page.get_by_role("button", name="Go to spleen").click()
    assert page.locator("#sliders output").inner_text() == "13 / 20"
    page.get_by_role("radio", name="All").check(force=True)
    told = page.locator("#sliders output").all_inner_texts()
    assert told == ["13 / 20", "25 / 40", "32 / 48"]
    page.get_by_role("radio", name="3D").check(force=True)
    assert not page.locator("#sliders").is_visible()
    with_mask = browsing.shot(page, "#volume")
    page.locator("#targets input").uncheck()
    differs = np.abs(browsing.shot(page, "#volume") - with_mask).max(2) > 20
    x0, y0, x1, y1 = browsing.box(differs)
    # The rendering looks at the patient's front: right is left, head is up.
    middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    shape = np.array(with_mask.shape[1::-1])
    assert (middle < shape / 2 + 5).all() and differs.sum() > 100
    name, data = browsing.saved(page, page.locator("#snapshot").click)
    assert name == "view.png" and len(data) > 5000
    sessions = at.app.folder / "shelf" / "sessions"
    (held,) = sessions.iterdir()
    # A session that was left alone ends; the page then sends the image again.
    requests.delete(f"{at.url}/session/{held.name}", timeout=20)
    browsing.ask(page, "And now?")
    assert page.locator(".state.failed").count() == 0
    (other,) = sessions.iterdir()
    assert other.name != held.name
    page.get_by_role("button", name="New image").click()
    served.until(lambda: not list(sessions.iterdir()))


def test_a_dicom_series_is_seen_and_saved_as_a_segmentation(browser, at):
  voxels, labels, affine = patient("SPL")
  datasets = dicom_files.series(voxels, affine, "MR", intercept=0)
  files = []
  for number, dataset in enumerate(reversed(datasets)):
    made = io.BytesIO()
    dataset.save_as(made, enforce_file_format=True)
    files.append((f"Doe-Jane-{number}", made.getvalue()))
  with browsing.page(browser, at.url + "/") as page:
    browsing.open_files(page, files)
    browsing.ask(page, "Where is the spleen?")
    check_place(page, "Axial", (0, 1))
    click = page.get_by_role("button", name="Save segmentation.dcm").click
    name, data = browsing.saved(page, click)
    assert name == "segmentation.dcm"
    seg = highdicom.seg.segread(io.BytesIO(data))
    found = seg.get_pixels_by_source_instance(
      [dataset.SOPInstanceUID for dataset in datasets],
      assert_missing_frames_are_empty=True,
    )
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["spleen"]
    np.testing.assert_array_equal(found[..., 0], labels)
    # Not for another origin: the browser gives a page half a second then, and
    # a slow one does not come to its last word.
    page.reload()
  assert not any("Doe" in str(fields) for fields in at.log)
  sessions = at.app.folder / "shelf" / "sessions"
  served.until(lambda: not list(sessions.iterdir()))


def test_one_dicom_picture_is_shown_as_a_picture(browser, at):
  image_IJC = np.full((64, 96, 3), 30, np.uint8)
  image_IJC[10:30, 20:60] = 250
  dataset = dicom_files.new("DX")
  dicom_files.put_pixels(dataset, image_IJC[..., 0])
  made = io.BytesIO()
  dataset.save_as(made, enforce_file_format=True)
  with browsing.page(browser, at.url + "/") as page:
    browsing.open_files(page, [("chest", made.getvalue())])
    label = page.locator("#picture").get_attribute("aria-label")
    assert "96 × 64 pixels" in label
    before = browsing.shot(page, "#picture")
    browsing.ask(page, "Where is the spleen?")
    differs = np.abs(browsing.shot(page, "#picture") - before).max(2) > 8
    scale = min(before.shape[1] / 96, before.shape[0] / 64)
    corner = (np.array(before.shape[1::-1]) - np.array([96, 64]) * scale) / 2
    found = (browsing.box(differs) - [*corner, *corner]) / scale
    np.testing.assert_allclose(found, [20, 10, 60, 30], atol=0.5)
    assert page.get_by_role("button", name="Save segmentation.dcm").count() == 1


def test_a_volume_that_cannot_be_read_is_said(browser, at):
  data, _, _ = nifti("RAS")
  with browsing.page(browser, at.url + "/", faults=("400",)) as page:
    broken = gzip.compress(gzip.decompress(data)[:-5000])
    files = [("a.nii.gz", broken)]
    page.set_input_files(
      "#file",
      [
        {"name": name, "mimeType": "application/gzip", "buffer": data}
        for name, data in files
      ],
    )
    page.wait_for_selector("#alert:not([hidden])", timeout=20000)
    told = page.locator("#alert").inner_text()
    assert "image" in told.lower() and "/" not in told


def test_axe_finds_nothing_beside_a_volume(browser, at):
  data, _, _ = nifti("RAS")
  with browsing.page(browser, at.url + "/", bypass_csp=True) as page:
    browsing.open_files(page, [("scan.nii.gz", data)])
    browsing.ask(page, "Where is the spleen?")
    page.locator("#options summary").click()
    browsing.accessible(page)
