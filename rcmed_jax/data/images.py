"""Pixels: files to arrays, arrays to the model's frame, and back.

The model's frame is a square of `image_size`: the longest side resized to it,
the rest zeros below and to the right. Each step gives the numbers that OpenCV
gives the release. Source: the released preprocessing and postprocessing.
"""

import os
import pathlib

import cv2
import numpy as np
import PIL.Image

from rcmed_jax.data.checks import DataError

MIN_SIDE = 16  # pixels; less is no picture but an accident
MAX_PIXELS = 80_000_000  # 240 MB decoded; just below where Pillow warns

# Format and mode, in Pillow's words, of what OpenCV reads wrongly: it takes
# the colours of a transparent TIFF for darker ones.
BY_PILLOW = {("TIFF", "RGBA")}

# And of what no picture can be made of without being told more.
NO_RANGE = (
  "its numbers are signed, fractions or of 32 bits, and nothing says which of "
  "them are black and white"
)
NOT_SHOWN = {
  ("TIFF", "I"): NO_RANGE,
  ("TIFF", "F"): NO_RANGE,
  ("TIFF", "LAB"): "its colours are L*a*b*, which is not read here",
}


def read(path: str | pathlib.Path) -> np.ndarray:
  """uint8[I, J, 3], RGB: EXIF rotation applied, alpha dropped, 16 to 8 bit.

  Of 16 bits the upper eight that are in use: a camera or scanner of 12 bits
  stores 0..4095 in them, whose upper byte would be black.

  Raises:
    DataError: missing, unreadable, or of a size that cannot be used. The size
      is read from the header, before anything is decoded.
  """
  kind = _check(path)
  if kind in NOT_SHOWN:
    raise _unreadable(path, "image", NOT_SHOWN[kind])
  if kind in BY_PILLOW:
    # Cut and not converted: what is transparent keeps its colour.
    return _read_by_pillow(path, "image")[..., :3].copy()
  image_IJC = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
  if image_IJC is None:
    raise _unreadable(path, "image", "its pixels cannot be decoded")
  if image_IJC.dtype not in (np.uint8, np.uint16):
    raise _unreadable(path, "image", NO_RANGE)
  return cv2.cvtColor(eight_bits(image_IJC), cv2.COLOR_BGR2RGB)


def eight_bits(values: np.ndarray) -> np.ndarray:
  """uint8 of any shape: uint16 without the bits that are less or never set."""
  if values.dtype == np.uint8:
    return values
  if values.dtype != np.uint16:
    raise ValueError(f"Expected uint8 or uint16, received {values.dtype}.")
  return (values >> max(int(values.max()).bit_length() - 8, 0)).astype(np.uint8)


def read_mask(path: str | pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
  """bool[I, J]: where the mask file is above 0; colours by their brightness.

  Raises:
    DataError: missing, unreadable, empty, or of another size than `shape`,
      the image's rows and columns.
  """
  _check(path, "mask")
  mask_IJ = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
  if mask_IJ is None:
    raise _unreadable(path, "mask", "its pixels cannot be decoded")
  _check_grid(path, mask_IJ, shape)
  if not mask_IJ.any():
    raise DataError(
      path,
      "mask",
      "it is empty",
      "Remove it from the index: a class without a mask counts as absent",
    )
  return mask_IJ > 0


def read_labels(path: str | pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
  """Whole numbers[I, J]: which class each pixel is; of a palette, the indices.

  Raises:
    DataError: missing, unreadable, of colours, or of another size than
      `shape`, the image's rows and columns.
  """
  _, mode = _check(path, "mask")
  if mode not in ("1", "L", "P") and not mode.startswith("I"):
    raise DataError(
      path,
      "mask",
      f"expected one number a pixel, which says the class, received {mode}",
      "Save it as a grey or palette PNG, or as one mask a class",
    )
  if mode == "P":
    labels_IJ = _read_by_pillow(path, "mask")
  else:
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
    labels_IJ = cv2.imread(str(path), flags)
  if labels_IJ is None:
    raise _unreadable(path, "mask", "its pixels cannot be decoded")
  _check_grid(path, labels_IJ, shape)
  return labels_IJ


def resized_shape(shape: tuple[int, ...], size: int) -> tuple[int, int]:
  """Rows and columns after the longest side became `size`.

  Scale first, then each side rounded half to even, as Python's round does:
  (1025, 2048) becomes (512, 1024) at size 1024.
  """
  scale = size / max(shape[:2])
  rows, columns = (max(round(side * scale), 1) for side in shape[:2])
  return rows, columns


def prepare(image_IJC: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """The image in the model's frame.

  Returns:
    uint8[size, size, 3] and int32[2], the rows and columns that are image.
  """
  rows, columns = resized_shape(image_IJC.shape, size)
  if image_IJC.shape[:2] != (rows, columns):
    image_IJC = cv2.resize(
      image_IJC, (columns, rows), interpolation=cv2.INTER_LINEAR
    )
  frame_IJC = np.zeros((size, size, 3), np.uint8)
  frame_IJC[:rows, :columns] = image_IJC
  return frame_IJC, np.array([rows, columns], np.int32)


def prepare_mask(mask_IJ: np.ndarray, mask_size: int) -> np.ndarray:
  """uint8[mask_size, mask_size], 0 or 1: the mask in the model's frame.

  A pixel is set where the mask covers half of it or more; a mask too thin for
  any pixel keeps the one it covers most, so that no target is lost. Unlike the
  image, the mask is padded first and resized then: its sides are few pixels
  here, and rounding them would shift it against the image.
  """
  side = max(mask_IJ.shape)
  square_IJ = np.zeros((side, side), np.float32)
  square_IJ[: mask_IJ.shape[0], : mask_IJ.shape[1]] = mask_IJ
  covered_IJ = cv2.resize(
    square_IJ,
    (mask_size, mask_size),
    interpolation=cv2.INTER_AREA if mask_size < side else cv2.INTER_LINEAR,
  )
  limit = min(0.5, float(covered_IJ.max()))
  return ((covered_IJ >= limit) & (covered_IJ > 0)).astype(np.uint8)


def restore_logits(
  logits_YX: np.ndarray,
  extent_2: np.ndarray,
  size: int,
  shape: tuple[int, ...],
) -> np.ndarray:
  """float32[I, J]: low-resolution logits on the image's own grid.

  Bilinear to `size`, padding cut off, bilinear to the original rows and
  columns; without antialiasing, also where that shrinks.
  """
  frame_IJ = cv2.resize(
    np.asarray(logits_YX, np.float32),
    (size, size),
    interpolation=cv2.INTER_LINEAR,
  )
  rows, columns = map(int, extent_2)
  return cv2.resize(
    frame_IJ[:rows, :columns],
    (shape[1], shape[0]),
    interpolation=cv2.INTER_LINEAR,
  )


def box(mask_IJ: np.ndarray) -> tuple[int, int, int, int] | None:
  """(x0, y0, x1, y1) of the set pixels, x1 and y1 exclusive; None if empty."""
  rows = np.flatnonzero(mask_IJ.any(1))
  columns = np.flatnonzero(mask_IJ.any(0))
  if not len(rows):
    return None
  return (
    int(columns[0]),
    int(rows[0]),
    int(columns[-1]) + 1,
    int(rows[-1]) + 1,
  )


def noise(rng: np.random.Generator, size: int) -> np.ndarray:
  """uint8[size, size, 3] that shows nothing, of one of four kinds.

  Uniform or normal noise, smooth blobs, or one colour: pictures of which every
  class is absent.
  """
  kind = int(rng.integers(4))
  shape = (size, size, int(rng.choice([1, 3])))
  if kind == 0:
    values = rng.uniform(0, 255, shape)
  elif kind == 1:
    values = rng.normal(rng.uniform(40, 200), rng.uniform(10, 70), shape)
  elif kind == 2:
    coarse = rng.uniform(0, 255, (int(rng.integers(3, 9)),) * 2 + shape[2:])
    values = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    values = values.reshape(shape)
  else:
    values = np.broadcast_to(rng.uniform(0, 255, (1, 1, shape[2])), shape)
  clipped = np.clip(values, 0, 255).astype(np.uint8)
  return np.broadcast_to(clipped, (size, size, 3)).copy()


def _check(path: str | pathlib.Path, field: str = "image") -> tuple[str, str]:
  """What the header says: format and mode, in Pillow's words."""
  # Not pathlib's, which raises what a name too long or a closed folder raises.
  if not os.path.isfile(path):
    raise DataError(
      path, field, "there is no such file", "Correct the path in the index"
    )
  try:
    with PIL.Image.open(path) as header:
      columns, rows = header.size
      kind = header.format or "", header.mode
      pages = _pages(header)
  except PIL.Image.DecompressionBombError as error:
    raise _wrong_size(path, field, str(error).rstrip(".")) from error
  except Exception as error:
    # Pillow raises what its parsers meet: KeyError, TypeError, SyntaxError...
    raise _unreadable(path, field, f"this is no image ({error})") from error
  if min(rows, columns) < MIN_SIDE or rows * columns > MAX_PIXELS:
    raise _wrong_size(path, field, f"it has {rows} x {columns} pixels")
  if kind[0] == "JPEG" and not _ends(path):
    raise _unreadable(path, field, "the file breaks off before its end")
  if pages > 1:
    raise DataError(
      path,
      field,
      f"it holds {pages} pictures of one size",
      "Save each as a file of its own: the others would not be seen",
    )
  return kind


def _pages(header: PIL.Image.Image) -> int:
  """How many pictures there are; smaller copies of the first are none.

  Nor are those that telephones put behind a JPEG.
  """
  size, pages = header.size, getattr(header, "n_frames", 1)
  if header.format == "MPO":
    return 1
  if pages > 1:
    header.seek(1)
  return pages if header.size == size else 1


def _check_grid(
  path: str | pathlib.Path, mask_IJ: np.ndarray, shape: tuple[int, ...]
) -> None:
  if mask_IJ.shape != tuple(shape):
    raise DataError(
      path,
      "mask",
      f"it has {mask_IJ.shape[0]} x {mask_IJ.shape[1]} pixels, its image "
      f"{shape[0]} x {shape[1]}",
      "Save the mask on the image's own grid",
    )


def _read_by_pillow(path: str | pathlib.Path, field: str) -> np.ndarray:
  try:
    with PIL.Image.open(path) as image:
      return np.array(image)
  except Exception as error:
    raise _unreadable(
      path, field, f"its pixels cannot be decoded ({error})"
    ) from error


def _ends(path: str | pathlib.Path) -> bool:
  """Whether a JPEG's last start of scan (ff da) has an end of image (ff d9).

  OpenCV fills what a broken-off file lacks with grey and says nothing. An
  earlier end may be a thumbnail's; anything may follow the last one.
  """
  data = pathlib.Path(path).read_bytes()
  return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def _wrong_size(path: object, field: str, what: str) -> DataError:
  return DataError(
    path,
    field,
    f"{what}; expected sides of at least {MIN_SIDE} and at most "
    f"{MAX_PIXELS // 10**6} million pixels",
    "Enlarge it, or cut it into tiles",
  )


def _unreadable(path: object, field: str, what: str) -> DataError:
  return DataError(
    path, field, what, "Save it again as PNG, JPEG or TIFF, or remove it"
  )
