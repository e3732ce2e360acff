"""SNOMED CT codes of the classes that segmentations are archived under.

The numbers come from pydicom's dictionary, which is made of DICOM PS 3.16; here
stand only which of its names is which class. A class that is not here gets a
code of our own, of the scheme 99RCMED: private schemes begin with 99 (DICOM PS
3.3, 8.2).
"""

import dataclasses
import hashlib
import importlib
from typing import Any

from rcmed_jax.data import extras

SCHEME = "99RCMED"

# Class, in lower case and one of it -> its name in pydicom's dictionary.
ORGANS = {
  "liver": "Liver",
  "spleen": "Spleen",
  "kidney": "Kidney",
  "pancreas": "Pancreas",
  "heart": "Heart",
  "left atrium": "LeftAtrium",
  "right atrium": "RightAtrium",
  "left ventricle": "LeftVentricle",
  "right ventricle": "RightVentricle",
  "lung": "Lung",
  "gallbladder": "Gallbladder",
  "stomach": "Stomach",
  "bladder": "Bladder",
  "urinary bladder": "Bladder",
  "aorta": "Aorta",
  "inferior vena cava": "InferiorVenaCava",
  "portal vein": "PortalVein",
  "pulmonary artery": "PulmonaryArtery",
  "esophagus": "Esophagus",
  "oesophagus": "Esophagus",
  "duodenum": "Duodenum",
  "small intestine": "SmallIntestine",
  "colon": "Colon",
  "rectum": "Rectum",
  "prostate": "Prostate",
  "uterus": "Uterus",
  "adrenal gland": "AdrenalGland",
  "thyroid": "Thyroid",
  "trachea": "Trachea",
  "brain": "Brain",
  "hippocampus": "Hippocampus",
  "spinal cord": "SpinalCord",
  "vertebra": "Vertebra",
  "rib": "Rib",
  "femur": "Femur",
  "sternum": "Sternum",
  "sacrum": "Sacrum",
  "eye": "Eye",
  "breast": "Breast",
}
LESIONS = {
  "tumor": "Neoplasm",
  "tumour": "Neoplasm",
  "neoplasm": "Neoplasm",
  "lesion": "Lesion",
  "nodule": "Nodule",
  "cyst": "Cyst",
  "hemorrhage": "Hemorrhage",
  "haemorrhage": "Hemorrhage",
  "edema": "Edema",
  "oedema": "Edema",
}
SIDES = {"left": "Left", "right": "Right"}


@dataclasses.dataclass(frozen=True)
class Codes:
  """What a segment is, as highdicom takes it."""

  category: Any
  kind: Any
  side: Any  # None: none is named
  organ: Any  # in which a lesion lies; None: none is named


def of(name: str) -> Codes:
  """The codes of a class: "left kidneys" is a kidney, on the left."""
  extras.load("highdicom", "DICOM segmentations", "dicom")
  codes = importlib.import_module("pydicom.sr.codedict").codes.SCT
  words = name.lower().replace("_", " ").split()
  whole = " ".join(words)
  side = None
  if whole not in ORGANS and words[:1] and words[0] in SIDES:
    side = getattr(codes, SIDES[words[0]])
    words = words[1:]
  organ = _known(ORGANS, words)
  if organ:
    return Codes(codes.AnatomicalStructure, getattr(codes, organ), side, None)
  lesion = _known(LESIONS, words[-1:])
  place = _known(ORGANS, words[:-1])
  if lesion and (place or len(words) == 1):
    return Codes(
      codes.MorphologicallyAbnormalStructure,
      getattr(codes, lesion),
      side,
      getattr(codes, place) if place else None,
    )
  return Codes(_own("segmented target"), _own(name), None, None)


def _known(table: dict[str, str], words: list[str]) -> str | None:
  whole = " ".join(words)
  return table.get(whole) or table.get(whole.removesuffix("s"))


def _own(name: str) -> Any:
  """A code of our scheme: 16 characters, the most that a code may have."""
  coded = importlib.import_module("pydicom.sr.coding").Code
  value = hashlib.sha256(name.lower().encode()).hexdigest()[:16].upper()
  return coded(value, SCHEME, name[:64] or "unnamed")
