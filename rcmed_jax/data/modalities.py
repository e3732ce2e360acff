"""What was measured, in words: one name for all the ways to write it.

"CT", "Computed Tomography" and DICOM's "CT" are `computed tomography`. Windows,
questions and tables compare names, so that one that is written otherwise would
be shown, asked and counted otherwise: nothing but these names gets past here.
"""

from collections.abc import Iterable, Mapping
import difflib
import re

from rcmed_jax.data import readers

CT = readers.MODALITIES["ct"]
MR = readers.MODALITIES["mr"]

# Where nothing says what was measured.
UNKNOWN = "unknown"

# Names -> what else they are called, in small letters.
_PHRASES = {
  CT: (
    "cta",
    "ct angiography",
    "computerized tomography",
    "computerised tomography",
    "x ray computed tomography",
  ),
  MR: (
    "mr imaging",
    "magnetic resonance imaging",
    "t1 weighted",
    "t2 weighted",
    *("t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2f"),
    *("flair", "dwi", "adc", "dce", "cine", "lge"),
  ),
  "X-Ray": (
    "x ray",
    "x rays",
    "radiograph",
    "radiography",
    "mammogram",
    "mammography",
  ),
  "ultrasound": ("ultrasonography", "sonography"),
  "pet": ("positron emission tomography",),
  "pathology": ("histopathology", "histology"),
  "dermoscopy": ("dermatoscopy",),
  "oct": ("optical coherence tomography",),
}

# DICOM's words, PS 3.3, C.7.3.1.1.1. In a sentence they mean other things.
# "OT", other, and words of no picture are left out.
DICOM = {
  "CT": CT,
  "MR": MR,
  "PT": "pet",
  "US": "ultrasound",
  "IVUS": "ultrasound",
  "CR": "X-Ray",
  "DX": "X-Ray",
  "RG": "X-Ray",
  "RF": "X-Ray",
  "XA": "X-Ray",
  "MG": "X-Ray",
  "IO": "X-Ray",
  "PX": "X-Ray",
  "ES": "endoscopy",
  "OP": "fundus",
  "OPT": "oct",
  "OCT": "oct",
  "SM": "pathology",
  "DMS": "dermoscopy",
}

_SPELLINGS = {
  phrase: name for name, phrases in _PHRASES.items() for phrase in phrases
} | {
  name.replace("-", " ").lower(): name for name in readers.MODALITIES.values()
}

# Of file names and sentences. "x" is mostly a place or a case there.
_IN_TEXT = _SPELLINGS | {
  word: name for word, name in readers.MODALITIES.items() if word != "x"
}
# Of a word or phrase that somebody gives for a modality.
_ALONE = (
  {word.lower(): name for word, name in DICOM.items()}
  | readers.MODALITIES
  | _SPELLINGS
)

# "Show us", "the fundus of the stomach", "pathology in this CT image": what
# stands before such a word is what was measured, whatever else is named.
_PICTURE = r"(?:images?|scans?|pictures?|volumes?|slices?|study|studies|series)"


def normal(text: str, more: Iterable[tuple[str, str]] = ()) -> str:
  """The one name of a modality; "" of "".

  Args:
    text: a word, phrase or DICOM's code, in letters of any size.
    more: (word, name), of modalities that nobody but the caller knows.

  Raises:
    ValueError: it is not known; says which is nearest.
  """
  known = _ALONE | _extra(more)
  known |= {_plain(name): name for name in known.values()}
  wanted = _plain(text)
  if not wanted:
    return ""
  if wanted in known:
    return known[wanted]
  near = difflib.get_close_matches(wanted, known, 1)
  hint = f"did you mean {known[near[0]]!r}? Expected" if near else "expected"
  raise ValueError(
    f"modality={text!r} is not known; {hint} one of "
    f"{', '.join(sorted(set(known.values())))}. Where data are prepared, "
    '--modality-word "WORD=NAME" introduces another.'
  )


def normal_words(
  more: Iterable[tuple[str, str]],
) -> tuple[tuple[str, str], ...]:
  """(word, name), names that are known written as they are here."""
  return tuple((word, _ALONE.get(_plain(name), name)) for word, name in more)


def in_name(text: str, more: Iterable[tuple[str, str]] = ()) -> set[str]:
  """The modalities that a file's name, or a channel's, holds as words."""
  return _found(text, _IN_TEXT | _extra(more))


def in_sentence(text: str) -> set[str]:
  """The modalities that a request names.

  What stands before "image" or "scan" counts alone, if anything does. "us" is
  one in capitals only.
  """
  text = re.sub(r"\bUS\b", "ultrasound", text)
  known = {word: _IN_TEXT[word] for word in _IN_TEXT.keys() - {"us"}}
  phrases = _alternatives(known)
  told = re.findall(rf"(?<!\S)({phrases}) {_PICTURE}(?!\S)", _plain(text))
  if told:
    return {known[word] for word in told}
  for vertebra in ("t1", "t2"):
    del known[vertebra]
  return _found(text, known)


def _found(text: str, known: Mapping[str, str]) -> set[str]:
  pattern = rf"(?<!\S)(?:{_alternatives(known)})(?!\S)"
  return {known[word] for word in re.findall(pattern, _plain(text))}


def _alternatives(known: Mapping[str, str]) -> str:
  """The longest first: "optical coherence tomography" is one phrase."""
  return "|".join(map(re.escape, sorted(known, key=len, reverse=True)))


def _extra(more: Iterable[tuple[str, str]]) -> dict[str, str]:
  return {_plain(word): name for word, name in more}


def _plain(text: str) -> str:
  """Words in small letters with a space between: "X-Ray" is "x ray"."""
  return " ".join(re.findall(r"[^\W_]+", text.lower()))
