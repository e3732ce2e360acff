import bz2
import gzip

import nrrd
import numpy as np
import pytest
import volume_files

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.volumes import nrrd_file, volumes

CT = sources.Options(
  modality="computed tomography", label_names=((1, "kidney"), (2, "spleen"))
)
# Signs of RAS's axes in a space.
SPACES = {
  "right-anterior-superior": (1, 1, 1),
  "left-posterior-superior": (-1, -1, 1),
  "left-anterior-superior": (-1, 1, 1),
}


def save(path, voxels, affine, space="left-posterior-superior", **header):
  path.parent.mkdir(parents=True, exist_ok=True)
  signs = np.array(SPACES[space])
  nrrd.write(
    str(path),
    voxels,
    {
      "space": space,
      "space directions": (affine[:3, :3] * signs[:, None]).T,
      "space origin": affine[:3, 3] * signs,
      **header,
    },
  )
  return path


def read(path, **options):
  base = {**vars(CT), **options}
  return volume_files.read(nrrd_file.open_source(path, sources.Options(**base)))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("code", volume_files.CODES[::5])
def test_every_orientation_gives_the_same_triplets(tmp_path, code, space):
  image, labels, affine = volume_files.patient()
  for name, voxels in (("image", image), ("label", labels)):
    save(
      tmp_path / f"{name}.nrrd",
      *volume_files.turned(voxels, affine, code),
      space=space,
    )
  triplets, faults = read(tmp_path)
  labels_ZIJ = volume_files.axial(labels)
  assert len(triplets) == labels_ZIJ.any((1, 2)).sum()
  assert len(faults) == 1
  for triplet in triplets:
    z = int(triplet.id[-4:])
    for name, mask_IJ in zip(triplet.classes, triplet.masks_GIJ, strict=True):
      value = {"kidney": 1, "spleen": 2}[name]
      np.testing.assert_array_equal(mask_IJ, labels_ZIJ[z] == value)
    assert triplet.spacing_mm == pytest.approx((0.75, 1.5))


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_encodings_give_the_same_voxels(tmp_path, encoding):
  image, _, affine = volume_files.patient()
  for kind in (np.int16, np.uint8, np.float32, np.float64, np.uint16, np.int32):
    path = save(
      tmp_path / "a.nrrd", image.astype(kind), affine, encoding=encoding
    )
    stored = nrrd_file.read(path, "image")
    np.testing.assert_array_equal(stored.voxels, image.astype(kind))
    assert stored.grid.spacing_mm == pytest.approx(volume_files.SPACING)
    np.testing.assert_allclose(stored.grid.affine, affine)


def test_big_endian_numbers(tmp_path):
  image, _, affine = volume_files.patient()
  path = save(tmp_path / "a.nrrd", image, affine, encoding="raw")
  content = path.read_bytes()
  head, _, data = content.partition(b"\n\n")
  swapped = np.frombuffer(data, "<i2").astype(">i2").tobytes()
  path.write_bytes(
    head.replace(b"endian: little", b"endian: big") + b"\n\n" + swapped
  )
  np.testing.assert_array_equal(nrrd_file.read(path, "image").voxels, image)


def test_a_header_may_lie_beside_its_data(tmp_path):
  image, _, affine = volume_files.patient()
  path = save(tmp_path / "a.nhdr", image, affine, encoding="gzip")
  assert len(list(tmp_path.iterdir())) == 2
  np.testing.assert_array_equal(nrrd_file.read(path, "image").voxels, image)
  text = path.read_text()
  name = next(p.name for p in tmp_path.iterdir() if p.suffix != ".nhdr")
  path.write_text(text.replace(name, f"../{name}"))
  with pytest.raises(DataError, match="another folder"):
    nrrd_file.read(path, "image")


def test_raw_files_are_mapped_not_read(tmp_path):
  image, _, affine = volume_files.patient()
  path = save(tmp_path / "a.nrrd", image, affine, encoding="raw")
  assert isinstance(nrrd_file.read(path, "image").voxels, np.memmap)


def test_slicer_s_segmentations_name_their_labels(tmp_path):
  image, labels, affine = volume_files.patient()
  save(tmp_path / "images/a.nrrd", image, affine)
  save(
    tmp_path / "labels/a.seg.nrrd",
    labels,
    affine,
    Segment0_Name="right_kidney",
    Segment0_LabelValue="1",
    Segment1_Name="spleen",
    Segment1_LabelValue="2",
  )
  triplets, _ = read(tmp_path, label_names=())
  assert {n for t in triplets for n in t.classes} == {"right kidney", "spleen"}


def test_colours_are_kept(tmp_path):
  colours = np.random.default_rng(0).integers(0, 256, (3, 20, 21, 22), np.uint8)
  directions = np.vstack([[np.nan] * 3, np.eye(3)])
  nrrd.write(
    str(tmp_path / "a.nrrd"),
    colours,
    {
      "space": "right-anterior-superior",
      "kinds": ["RGB-color", "domain", "domain", "domain"],
      "space directions": directions,
      "space origin": [0, 0, 0],
    },
  )
  stored = nrrd_file.read(tmp_path / "a.nrrd", "image")
  np.testing.assert_array_equal(stored.voxels, np.moveaxis(colours, 0, -1))


def test_what_does_not_say_where_it_lies_is_refused(tmp_path):
  nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((20, 20, 20), np.uint8))
  with pytest.raises(DataError, match="side of the patient"):
    nrrd_file.read(tmp_path / "a.nrrd", "image")


@pytest.mark.parametrize(
  ("encoding", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress)]
)
def test_no_more_is_unpacked_than_the_header_says(tmp_path, encoding, pack):
  image, _, affine = volume_files.patient()
  path = save(tmp_path / "a.nrrd", image, affine, encoding=encoding)
  head = path.read_bytes().partition(b"\n\n")[0]
  more = image.tobytes("F") + bytes(50_000_000)
  path.write_bytes(head + b"\n\n" + pack(more))
  voxels = nrrd_file.read(path, "image").voxels
  np.testing.assert_array_equal(voxels, image)
  path.write_bytes(head + b"\n\n" + pack(image.tobytes("F")[:-9]))
  with pytest.raises(DataError, match="breaks off"):
    nrrd_file.read(path, "image")
  huge = head.replace(b"sizes: 20 24 18", b"sizes: 20000 24000 18")
  assert huge != head
  path.write_bytes(huge + b"\n\n" + pack(more))
  with pytest.raises(DataError, match=f"at most {volumes.MAX_BYTES // 10**6}"):
    nrrd_file.read(path, "image")


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"NRRD0004\n",
    b"no nrrd",
    b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2\nencoding: raw\n\n",
    b"NRRD0004\ntype: block\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n",
    b"NRRD0004\ntype: short\ndimension: 3\nsizes: -2 2 2\nencoding: raw\n\n",
    b"\xff\xfe" * 400,
  ],
)
def test_damaged_headers_are_faults(tmp_path, content):
  (tmp_path / "image.nrrd").write_bytes(content)
  triplets, faults = read(tmp_path, unlabelled="keep")
  assert not triplets
  assert len(faults) == 1
