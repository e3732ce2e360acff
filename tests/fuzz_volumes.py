"""Reads mutated volumes in a process that may be killed; for tests.

  python fuzz_volumes.py FORMAT COUNT SEED FOLDER

Prints one JSON line: {"read": n, "refused": n, "peak_mb": n}. It dies of
SIGALRM where an input takes more than ten seconds, and of any exception that is
not handed over as a fault. Memory is limited to two gigabytes.
"""

import gzip
import io
import json
import os
import pathlib
import random
import resource
import signal
import sys
import zipfile

# Threads of linear algebra reserve memory that nobody uses.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import dicom_files
import memory
import nibabel
import nrrd
import numpy as np
from pydicom.data import get_testdata_files
import volume_files

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import dicom
from rcmed_jax.ingest.volumes import challenge, nifti, nrrd_file, volumes

LIMIT_BYTES = 2 << 30
MOST_S = 10

_PICTURES = (
  "CT_small.dcm",
  "MR_small.dcm",
  "MR_small_RLE.dcm",
  "MR_small_jp2klossless.dcm",
  "MR_small_jpeg_ls_lossless.dcm",
  "MR_small_bigendian.dcm",
  "SC_rgb_jpeg_gdcm.dcm",
  "SC_rgb_dcmtk_+eb+cy+np.dcm",
  "SC_rgb_rle_2frame.dcm",
  "image_dfl.dcm",
  "examples_palette.dcm",
)
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def mutate(content: bytes, rng: random.Random, header: int) -> bytes:
  """One to eight changes; half of them among the first `header` bytes."""
  data = bytearray(content)
  for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
    end = len(data) if rng.random() < 0.5 else min(header, len(data))
    if not end:
      break
    place = rng.randrange(end)
    kind = rng.randrange(6)
    if kind == 0:
      data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
      data[place] = rng.randrange(256)
    elif kind == 2:
      size = rng.choice((1, 2, 4))
      number = rng.choice(_NUMBERS) & ((1 << 8 * size) - 1)
      order = rng.choice(("little", "big"))
      data[place : place + size] = number.to_bytes(size, order)
    elif kind == 3:
      del data[place : place + rng.randrange(1, 64)]
    elif kind == 4:
      other = rng.randrange(len(data))
      data[place:place] = data[other : other + rng.randrange(1, 64)]
    else:
      del data[place:]
  return bytes(data)


def mutated_nifti(folder: pathlib.Path, rng: random.Random):
  """A pair of files of which one is damaged."""
  image, labels, affine = volume_files.patient()
  kind = rng.choice((nibabel.Nifti1Image, nibabel.Nifti2Image))
  ending = rng.choice((".nii", ".nii.gz"))
  contents = {
    "image": kind(image, affine).to_bytes(),
    "label": kind(labels, affine).to_bytes(),
  }
  victim = rng.choice(sorted(contents))
  inside = ending == ".nii" or rng.random() < 0.7
  for name, content in contents.items():
    if name == victim and inside:
      content = mutate(content, rng, 352)
    if ending == ".nii.gz":
      content = gzip.compress(content, 1)
      if name == victim and not inside:
        content = mutate(content, rng, 64)
    (folder / f"{name}{ending}").write_bytes(content)
  return nifti.open_source(folder, options(rng))


def mutated_nrrd(folder: pathlib.Path, rng: random.Random):
  """A pair of files of which one is damaged."""
  image, labels, affine = volume_files.patient()
  encoding = rng.choice(("raw", "gzip", "bzip2"))
  for name, voxels in (("image", image), ("label", labels)):
    nrrd.write(
      str(folder / f"{name}.nrrd"),
      voxels,
      {
        "space": "right-anterior-superior",
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "encoding": encoding,
      },
    )
  victim = folder / rng.choice(("image.nrrd", "label.nrrd"))
  victim.write_bytes(mutate(victim.read_bytes(), rng, 500))
  return nrrd_file.open_source(folder, options(rng))


def mutated_npz(folder: pathlib.Path, rng: random.Random):
  """A damaged file of the challenge."""
  image, labels, _ = volume_files.patient()
  arrays = {
    "imgs": volume_files.axial(image.astype(np.uint8)),
    "gts": volume_files.axial(labels),
    "spacing": np.ones(3),
  }
  # Damage inside an array has its archive's checksum; damage outside has not.
  victim = rng.choice((*arrays, ""))
  path = folder / "CT_a.npz"
  with zipfile.ZipFile(path, "w", rng.choice((0, 8))) as archive:
    for name, values in arrays.items():
      file = io.BytesIO()
      np.save(file, values)
      content = file.getvalue()
      if name == victim:
        content = mutate(content, rng, 128)
      archive.writestr(f"{name}.npy", content)
  if not victim:
    path.write_bytes(mutate(path.read_bytes(), rng, 200))
  return challenge.open_source(folder, options(rng))


def mutated_dicom(folder: pathlib.Path, rng: random.Random):
  """A damaged picture, or a series with damaged masks."""
  if rng.random() < 0.5:
    found = {os.path.basename(p): p for p in get_testdata_files()}
    content = pathlib.Path(found[rng.choice(_PICTURES)]).read_bytes()
    (folder / "a.dcm").write_bytes(mutate(content, rng, 2000))
    return dicom.open_source(folder, options(rng))
  image, labels, affine = volume_files.patient()
  voxels, turned = volume_files.turned(image, affine, "SPL")
  marks, _ = volume_files.turned(labels, affine, "SPL")
  datasets = dicom_files.series(voxels[4:10], turned)
  dicom_files.save_series(datasets, folder)
  if rng.random() < 0.5:
    kind = rng.choice(("BINARY", "LABELMAP"))
    masks = dicom_files.segmentation(datasets, marks[4:10], kind)
  else:
    points = [(x, y, 0) for x, y in ((3, 3), (9, 3), (9, 12), (3, 12))]
    contours = [
      (
        "CLOSED_PLANAR",
        np.add(points, (0.0, -25.0, -60.0 + 4 * z)),
      )
      for z in range(6)
    ]
    masks = dicom_files.structures(datasets, [("kidney", contours)] * 2)
  path = dicom_files.save(masks, folder / "masks.dcm")
  path.write_bytes(mutate(path.read_bytes(), rng, 4000))
  return dicom.open_source(folder, options(rng))


def options(rng: random.Random) -> sources.Options:
  return sources.Options(
    modality=rng.choice(("computed tomography", "magnetic resonance")),
    axis=rng.choice(("axial", "coronal", "sagittal")),
    empty_slices="drop" if rng.random() < 0.2 else "keep",
    unlabelled="drop" if rng.random() < 0.2 else "keep",
    assume_same_grid=rng.random() < 0.5,
    label_names=((1, "kidney"), (2, "spleen")),
    key=b"key",
  )


def check(triplet) -> None:
  rows, columns, colours = triplet.image_IJC.shape
  assert triplet.image_IJC.dtype == np.uint8
  assert colours == 3
  assert triplet.masks_GIJ.shape == (len(triplet.classes), rows, columns)
  assert triplet.masks_GIJ.dtype == bool
  assert triplet.masks_GIJ.any((1, 2)).all()
  spacing = triplet.spacing_mm
  assert spacing is None or (np.isfinite(spacing).all() and min(spacing) > 0)


def main(kind: str, count: int, seed: int, folder: pathlib.Path) -> None:
  """See the top of this file."""
  resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
  make = {
    "nifti": mutated_nifti,
    "nrrd": mutated_nrrd,
    "npz": mutated_npz,
    "dicom": mutated_dicom,
  }[kind]
  read = refused = 0
  for number in range(count):
    place = folder / f"{number:05d}"
    place.mkdir(parents=True)
    source = make(place, random.Random(f"{seed} {number}"))
    (folder / "last").write_text(str(number))
    faults, got, units = [], 0, 0
    signal.alarm(MOST_S)
    try:
      for unit in source.units(faults.append):
        units += 1
        before = len(faults)
        here = 0
        for triplet in unit.triplets(faults.append):
          check(triplet)
          here += 1
        # A unit gives something or says why not.
        assert here or len(faults) > before
        got += here
    except DataError as error:
      faults.append(error)
    signal.alarm(0)
    assert units or faults
    for fault in faults:
      assert isinstance(fault, DataError)
      assert str(fault)
    sound = all(isinstance(f, volumes.EmptySlicesError) for f in faults)
    read += sound
    refused += not sound
    for path in place.iterdir():
      path.unlink()
  peak = memory.peak_bytes() // 1_000_000
  print(json.dumps({"read": read, "refused": refused, "peak_mb": peak}))


if __name__ == "__main__":
  main(
    sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4])
  )
