"""Examples of one class: images and masks, from an index or a plain folder.

DIR/image2label_<split>.json     an index (see `readers.py`); images that have
                                 the class count
DIR/images/NAME.png              or images, and for each a mask of the same
DIR/masks/NAME.png               name
"""

import glob
import pathlib

from rcmed_jax.data import modalities, readers
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Record

_INDEX = "image2label_*.json"
_FORM = (
  f"Expected an index {_INDEX}, or images/NAME.png and masks/NAME.png for each "
  "example"
)


def read(
  folder: str | pathlib.Path, name: str, modality: str | None = None
) -> list[Record]:
  """The examples of a class, in the order of their names.

  Args:
    folder: of either form.
    name: the class.
    modality: as anybody writes it, "CT"; None takes it from an index, or from
      the names of the images (<modality>--...).

  Raises:
    DataError: the folder has neither form, holds no example of the class, an
      image lacks its mask, or the modality cannot be told.
    ValueError: the modality is not known.
  """
  folder = pathlib.Path(folder)
  modality = modalities.normal(modality or "")
  indices = sorted(folder.glob(_INDEX))
  if len(indices) > 1:
    names = ", ".join(path.name for path in indices)
    raise DataError(folder, "support", f"it has {names}", "Leave one index")
  found = (
    _from_index(indices[0], name)
    if indices
    else _from_folder(folder, name, modality)
  )
  if modality:
    return [_of(record, record.masks, modality) for record in found]
  told = {record.modality for record in found}
  if len(told) > 1:
    raise DataError(
      folder,
      "modality",
      f"the examples are of {', '.join(sorted(told))}",
      "Give examples of one modality, or say --modality",
    )
  return found


def _from_index(path: pathlib.Path, name: str) -> list[Record]:
  records = readers.read_index(path)
  found = [
    _of(record, tuple(m for m in record.masks if m[1] == name), record.modality)
    for record in records
    if name in record.classes
  ]
  if not found:
    classes = sorted({one for record in records for one in record.classes})
    raise DataError(
      path,
      "class",
      f"no image has {name!r}",
      f"Choose one of {', '.join(classes)}",
    )
  return found


def _from_folder(
  folder: pathlib.Path, name: str, modality: str
) -> list[Record]:
  images = sorted(p for p in folder.glob("images/*") if p.is_file())
  if not images:
    raise DataError(folder, "support", "there is no example in it", _FORM)
  found = []
  for image in images:
    masks = sorted((folder / "masks").glob(f"{glob.escape(image.stem)}.*"))
    if len(masks) != 1:
      raise DataError(
        image,
        "mask",
        f"expected one file masks/{image.stem}.*, found {len(masks)}",
        "Save one mask with the image's name",
      )
    found.append(
      Record(
        image=str(image),
        id=f"images/{image.name}",
        masks=((str(masks[0]), name),),
        modality=modality or _modality_of(image),
        dataset="",
      )
    )
  return found


def _modality_of(image: pathlib.Path) -> str:
  try:
    return readers.modality_name(image.name, readers.MODALITIES)
  except DataError as error:
    raise DataError(
      image,
      "modality",
      "its name does not say which it is",
      'Say it, for example --modality X-ray, or name images "x-ray--NAME.png"',
    ) from error


def _of(
  record: Record, masks: tuple[tuple[str, str], ...], modality: str
) -> Record:
  """The record with these masks alone."""
  return Record(record.image, record.id, masks, modality, record.dataset)
