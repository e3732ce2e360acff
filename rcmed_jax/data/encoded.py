"""A triplet as bytes: one TFDS example of a shard, and its header.

The example holds the image as PNG and one 1-bit PNG a class, and can be read
with `tfds.builder_from_directory` as well as here. The header is small JSON of
all that is known without pixels. Bytes depend on the triplet alone.
"""

from collections.abc import Iterator
import functools
import json
import struct
from typing import Any
import zlib

import cv2
import numpy as np

from rcmed_jax.data.records import Triplet

_PNG = b"\x89PNG\r\n\x1a\n"
# Width, height, 1 bit, grey, deflate, filters of PNG, not interlaced.
_HEADER = struct.Struct(">II5B")
_ONE_BIT = (1, 0, 0, 0, 0)
# Masks are flat: more effort saves little and costs time when building.
_EFFORT = 6

# Of protocol buffers: the kind of field, and where a feature holds bytes.
_WITH_LENGTH = 2
_BYTES_LIST = 1

# What of a triplet is in its header.
_WORDS = ("id", "modality", "description", "license", "group", "window")


@functools.cache
def features() -> Any:
  """The `tfds.features.FeaturesDict` of an example.

  Images and masks come encoded, so that no TensorFlow is needed. What is
  unknown is empty.
  """
  import tensorflow_datasets as tfds  # half a second; only builders need it

  text = tfds.features.Text
  return tfds.features.FeaturesDict(
    {
      "id": text(),
      "image": tfds.features.Image(shape=(None, None, 3)),
      "masks": tfds.features.Sequence(
        tfds.features.Image(shape=(None, None, 1))
      ),
      "classes": tfds.features.Sequence(text()),
      "modality": text(),
      "dataset": text(),
      "description": text(),
      "spacing_mm": tfds.features.Sequence(np.float32),
      "license": text(),
      "group": text(),
    }
  )


def encode(triplet: Triplet) -> bytes:
  """The triplet as one serialized example."""
  values = {
    "id": triplet.id,
    "image": image_png(triplet.image_IJC),
    "masks": [mask_png(mask_IJ) for mask_IJ in triplet.masks_GIJ],
    "classes": list(triplet.classes),
    "modality": triplet.modality,
    "dataset": triplet.source,
    "description": triplet.description or "",
    "spacing_mm": [np.float32(side) for side in triplet.spacing_mm or ()],
    "license": triplet.license or "",
    "group": triplet.group or "",
  }
  known = features()
  data = known.serialize_example(known.encode_example(values))
  # The features are a map, whose order differs from process to process.
  from tensorflow_datasets.proto import tf_example_pb2

  # pyright does not see through generated code.
  example = tf_example_pb2.Example.FromString(data)  # pyright: ignore
  return example.SerializeToString(deterministic=True)


def decode(data: bytes) -> tuple[str, np.ndarray, list[np.ndarray]]:
  """Id, image and masks of an example: uint8[I, J, 3] and bool[I, J] each.

  Raises:
    ValueError: it is no such example.
  """
  try:
    lists = _features(data)
    name = bytes(lists["id"][0]).decode()
    image_IJC = read_image(lists["image"][0])
    masks = [read_mask(png) for png in lists.get("masks", ())]
  except (KeyError, IndexError, cv2.error) as error:
    raise ValueError(f"it is no whole example ({error!r})") from error
  if any(mask_IJ.shape != image_IJC.shape[:2] for mask_IJ in masks):
    raise ValueError("a mask is not of its image's size")
  return name, image_IJC, masks


def header(triplet: Triplet) -> bytes:
  """What is known of the triplet without pixels, as JSON."""
  values: dict[str, Any] = {
    name: getattr(triplet, name)
    for name in _WORDS
    if getattr(triplet, name) is not None
  }
  values["dataset"] = triplet.source
  values["classes"] = list(triplet.classes)
  if triplet.spacing_mm is not None:
    # Exact, where the example's are rounded to float32.
    values["spacing_mm"] = list(triplet.spacing_mm)
  return json.dumps(values, ensure_ascii=False).encode()


def image_png(image_IJC: np.ndarray) -> bytes:
  """uint8[I, J, 3], RGB, as PNG; of one channel where all three are equal.

  A third of the bytes, and about half the time to decode.
  """
  grey_IJ = image_IJC[..., 0]
  if all(np.array_equal(grey_IJ, image_IJC[..., c]) for c in (1, 2)):
    stored = grey_IJ
  else:
    stored = cv2.cvtColor(image_IJC, cv2.COLOR_RGB2BGR)
  # OpenCV's defaults, which are fast: more effort makes files up to a fifth
  # smaller, takes seven times as long here, and decodes no faster.
  return cv2.imencode(".png", stored)[1].tobytes()


def read_image(png: bytes | memoryview) -> np.ndarray:
  """uint8[I, J, 3], RGB, of what `image_png` wrote.

  Raises:
    ValueError: it cannot be decoded.
  """
  pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
  if pixels is None:
    raise ValueError("its image cannot be decoded")
  grey = pixels.ndim == 2
  return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if grey else cv2.COLOR_BGR2RGB)


def mask_png(mask_IJ: np.ndarray) -> bytes:
  """bool[I, J] as a PNG of one bit a pixel, its rows unfiltered."""
  rows, columns = mask_IJ.shape
  packed_IJ = np.packbits(mask_IJ, axis=1)
  # Each row begins with the number of its filter; 0: none.
  lines_IJ = np.pad(packed_IJ, ((0, 0), (1, 0)))
  return b"".join(
    (
      _PNG,
      _chunk(b"IHDR", _HEADER.pack(columns, rows, *_ONE_BIT)),
      _chunk(b"IDAT", zlib.compress(lines_IJ.tobytes(), _EFFORT)),
      _chunk(b"IEND", b""),
    )
  )


def read_mask(png: bytes | memoryview) -> np.ndarray:
  """bool[I, J] of what `mask_png` wrote.

  Without libpng, which spends four times as long on single bits.

  Raises:
    ValueError: it is no such PNG.
  """
  try:
    columns, rows, *form = _HEADER.unpack_from(png, len(_PNG) + 8)
    start = len(_PNG) + 8 + _HEADER.size + 4
    (length,) = struct.unpack_from(">I", png, start)
    data = zlib.decompress(png[start + 8 : start + 8 + length])
    lines_IJ = np.frombuffer(data, np.uint8).reshape(rows, -1)
  except (struct.error, zlib.error, ValueError) as error:
    raise ValueError(f"a mask cannot be decoded ({error})") from error
  width = 1 + -(-columns // 8)  # bytes of a row with its filter's number
  if (
    tuple(form) != _ONE_BIT
    or lines_IJ.shape[1] != width
    or lines_IJ[:, 0].any()
  ):
    raise ValueError("a mask is no PNG of one bit a pixel, unfiltered")
  return np.unpackbits(lines_IJ[:, 1:], axis=1, count=columns).view(bool)


def _chunk(name: bytes, data: bytes) -> bytes:
  check = zlib.crc32(name + data)
  return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


def _features(data: bytes) -> dict[str, list[memoryview]]:
  """The lists of bytes of a serialized example, by name; nothing is copied.

  Read by hand: TFDS's class for it cannot be had without TFDS itself, whose
  import, begun by several threads of a pipeline, was seen to wait for ever.
  Example, features, map entry, feature and list are all fields with a length.
  Source: the wire format of protocol buffers.
  """
  found: dict[str, list[memoryview]] = {}
  for _, features in _fields(memoryview(data)):
    for _, entry in _fields(features):
      (_, name), (_, feature) = _fields(entry)
      for kind, values in _fields(feature):
        if kind == _BYTES_LIST:
          listed = [value for _, value in _fields(values)]
          found[bytes(name).decode()] = listed
  return found


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
  """(number, content) of each field with a length."""
  place = 0
  while place < len(data):
    tag, place = _varint(data, place)
    length, place = _varint(data, place)
    if tag & 7 != _WITH_LENGTH or place + length > len(data):
      raise ValueError("it is no whole example")
    yield tag >> 3, data[place : place + length]
    place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
  """A number of seven bits a byte, lowest first, and where it ends."""
  value = shift = 0
  while place < len(data):
    byte = data[place]
    value |= (byte & 0x7F) << shift
    place, shift = place + 1, shift + 7
    if byte < 0x80:
      return value, place
  raise ValueError("it breaks off within a number")
