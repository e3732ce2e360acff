"""Files that clients leave with the server: sessions, images, labels.

  sessions/NUMBER/          the files of a session
  images/ID/file/, info.json
  labels/TAG/ID/file/, info.json

All lie below one folder, and nothing is written outside of it: files have base
names, sessions random numbers, ids and tags are quoted. A session belongs to
the key that made it and ends when its time is over; images and labels stay. An
image may have several files, as a DICOM series has; a .zip is unpacked.

A file of its own marks the folder. Nothing is removed from a folder without it,
and a server holds its lock as long as it lives, so that no other clears the
sessions of one that runs.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import threading
import time
from typing import Any
import urllib.parse
import uuid
import weakref

from starlette.exceptions import HTTPException

from rcmed_jax.serve import errors, payload

# Of a session that nobody asks for, unless the client says less.
SESSION_S = 3600.0
# Sessions of all clients together.
MOST_SESSIONS = 100
# Of one image: more are an accident or an attack. A DICOM series is many.
MOST_FILES = 2000

_INFO = "info.json"
_FILES = "file"
# Marks a folder of ours; a server that runs holds its lock.
MARKER = ".rcmed-files"
# Of an id, quoted: what a file system takes.
_LONGEST = 255

# A file to be kept: its name as the client says it, and what writes it.
Incoming = tuple[str, Callable[[pathlib.Path], None]]


@dataclasses.dataclass
class Session:
  """Files of one image."""

  id: str
  owner: str | None  # name of a key
  folder: pathlib.Path
  lasts_s: float
  until: float
  users: int = 0  # requests that write or read its files now
  ended: bool = False  # nobody may ask for it; its last user removes it

  @property
  def path(self) -> pathlib.Path:
    """Its file, or the folder of several."""
    return _one_of(self.folder)


class Shelf:
  """Keeps files. Safe to use from several threads.

  Args:
    root: the folder, which is made.
    most_bytes: of all that lies in it.
    unpacked_bytes: of what an archive holds.

  Raises:
    ValueError: the folder is another's, or another server uses it.
  """

  def __init__(
    self,
    root: pathlib.Path,
    *,
    most_bytes: int = 20 * 10**9,
    unpacked_bytes: int = 2 * 10**9,
  ):
    self._root = root.resolve()
    self._most_bytes = most_bytes
    self._unpacked_bytes = unpacked_bytes
    self._sessions: dict[str, Session] = {}
    self._lock = threading.Lock()
    held = _claimed(self._root)
    # Its lock goes with this, or with the process, however that ends.
    self._release = weakref.finalize(self, os.close, held)
    # Of a server that was killed: nobody knows these any more.
    for name in ("sessions", "scratch"):
      shutil.rmtree(self._root / name, ignore_errors=True)
    for name in ("sessions", "images", "labels", "scratch"):
      (self._root / name).mkdir(parents=True, exist_ok=True)

  def close(self) -> None:
    """Lets another server have the folder."""
    self._release()

  @property
  def scratch(self) -> pathlib.Path:
    """A folder for what is gone with the request that made it."""
    return self._root / "scratch"

  def open_session(
    self,
    incoming: Sequence[Incoming],
    *,
    owner: str | None,
    lasts_s: float = SESSION_S,
  ) -> Session:
    """A session with these files.

    Raises:
      BadFieldError: a name is none, or given twice, or an archive is damaged.
      HTTPException: 429, there are too many; 507, there is no room.
    """
    self._check_room()
    lasts_s = min(max(lasts_s, 1.0), SESSION_S)
    folder = self._root / "sessions" / uuid.uuid4().hex
    # Its time begins once it is written.
    session = Session(folder.name, owner, folder, lasts_s, 0.0, users=1)
    with self._lock:
      self._expire()
      if len(self._sessions) >= MOST_SESSIONS:
        raise errors.later(429, "there are too many sessions", 60)
      self._sessions[session.id] = session
    try:
      self._write(folder, incoming, "files")
    except BaseException:
      with self._lock:
        self._sessions.pop(session.id, None)
      shutil.rmtree(folder, ignore_errors=True)
      raise
    self._leave(session)
    return session

  def session(self, name: str, owner: str | None) -> Session:
    """A session of this owner, which then lasts longer.

    Raises:
      HTTPException: 404, there is none.
    """
    with self._lock:
      return self._find(name, owner)

  @contextlib.contextmanager
  def use(self, name: str, owner: str | None) -> Iterator[Session]:
    """A session whose files stay meanwhile, even if it is ended; see `session`.

    A job holds it until its last file is written.
    """
    with self._lock:
      found = self._find(name, owner)
      found.users += 1
    try:
      yield found
    finally:
      self._leave(found)

  def close_session(self, name: str, owner: str | None) -> None:
    """Ends a session; see `session`. Who uses it still has its files."""
    with self._lock:
      found = self._find(name, owner)
      self._sessions.pop(found.id)
      found.ended = True
      used = found.users > 0
    if not used:
      shutil.rmtree(found.folder, ignore_errors=True)

  def unpacked(self, incoming: Incoming, folder: pathlib.Path) -> pathlib.Path:
    """The file in a new folder, or the folder where it was an archive.

    Raises:
      BadFieldError: its name is none, or it is a damaged archive.
    """
    self._write(folder, [incoming], "file")
    return _one_of(folder)

  def put_image(
    self, name: str, incoming: Incoming, info: dict[str, Any]
  ) -> str:
    """Keeps an image, in the place of the one before; its id comes back.

    Args:
      name: the id; "": the file's name.
      info: what else is said of it.
    """
    name = name or payload.base_name(incoming[0], "image")
    self._put(self._place("images", name), incoming, "image", info)
    return name

  def put_label(
    self, image: str, tag: str, incoming: Incoming, info: dict[str, Any]
  ) -> str:
    """Keeps a label of an image; its id, the image's, comes back.

    Raises:
      HTTPException: 404, there is no such image.
    """
    self.image(image)
    self._put(self._label(image, tag), incoming, "label", info)
    return image

  def image(self, name: str) -> pathlib.Path:
    """The file of an image, or the folder of several.

    Raises:
      HTTPException: 404, there is none.
    """
    place = self._place("images", name)
    if not place.is_dir():
      raise HTTPException(404, "there is no such image")
    return _one_of(place / _FILES)

  def label(self, name: str, tag: str) -> pathlib.Path:
    """The file of an image's label.

    Raises:
      HTTPException: 404, there is none.
    """
    place = self._label(name, tag)
    if not place.is_dir():
      raise HTTPException(404, "there is no such label")
    return _one_of(place / _FILES)

  def images(self) -> dict[str, dict[str, Any]]:
    """Id -> {"image": ..., "labels": {tag: ...}}, each {"ext", "info"}."""
    tags = sorted((self._root / "labels").iterdir())
    return {
      urllib.parse.unquote(place.name): {
        "image": _told(place),
        "labels": {
          urllib.parse.unquote(tag.name): _told(tag / place.name)
          for tag in tags
          if (tag / place.name).is_dir()
        },
      }
      for place in sorted((self._root / "images").iterdir())
    }

  def _place(self, kind: str, name: str) -> pathlib.Path:
    return self._root / kind / _quoted(name, kind.removesuffix("s"))

  def _label(self, image: str, tag: str) -> pathlib.Path:
    name = _quoted(image, "label")
    return self._root / "labels" / _quoted(tag or "final", "tag") / name

  def _put(
    self,
    place: pathlib.Path,
    incoming: Incoming,
    field: str,
    info: dict[str, Any],
  ) -> None:
    """Writes beside its place, and then takes it, whole."""
    self._check_room()
    made = self.scratch / uuid.uuid4().hex
    try:
      self._write(made / _FILES, [incoming], field)
      (made / _INFO).write_text(json.dumps(info), encoding="utf-8")
      with self._lock:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)
    finally:
      shutil.rmtree(made, ignore_errors=True)

  def _write(
    self, folder: pathlib.Path, incoming: Sequence[Incoming], field: str
  ) -> None:
    """Writes files into a new folder; of an archive, what it holds.

    Of several files, those that systems lay beside them are left out.
    """
    if len(incoming) > 1:
      told = [one for one in incoming if not payload.is_beside(one[0])]
      incoming = told or incoming
    names = [payload.base_name(name, field) for name, _ in incoming]
    if len(set(names)) < len(names):
      raise errors.BadFieldError(field, "a name is given twice", 400)
    # Several would overwrite files of each other, and each is bounded alone.
    if len(names) > 1 and any(
      payload.is_archive(pathlib.Path(name)) for name in names
    ):
      message = "give one .zip file alone, or the files that it holds"
      raise errors.BadFieldError(field, message, 400)
    folder.mkdir(parents=True)
    for name, (_, write) in zip(names, incoming, strict=True):
      path = folder / name
      write(path)
      if payload.is_archive(path):
        try:
          payload.unpack(
            path,
            folder,
            field,
            most_files=MOST_FILES,
            most_bytes=self._unpacked_bytes,
          )
        finally:
          path.unlink()

  def _find(self, name: str, owner: str | None) -> Session:
    """As `session`. Under the lock."""
    self._expire()
    found = self._sessions.get(name)
    if found is None or found.owner != owner:
      raise HTTPException(404, "there is no such session")
    found.until = time.monotonic() + found.lasts_s
    return found

  def _leave(self, session: Session) -> None:
    """One user less; its time begins anew."""
    with self._lock:
      session.users -= 1
      session.until = time.monotonic() + session.lasts_s
      over = session.ended and not session.users
    if over:
      shutil.rmtree(session.folder, ignore_errors=True)

  def _expire(self) -> None:
    """Ends sessions whose time is over. Under the lock."""
    now = time.monotonic()
    over = [
      name
      for name, one in self._sessions.items()
      if one.until < now and not one.users
    ]
    for name in over:
      shutil.rmtree(self._sessions.pop(name).folder, ignore_errors=True)

  def _check_room(self) -> None:
    """Whether there is room for more; one request may pass the limit."""
    held = 0
    for path in self._root.rglob("*"):
      try:
        held += path.stat().st_size
      except FileNotFoundError:  # of a request that ended just now
        continue
    if held >= self._most_bytes:
      raise HTTPException(507, "the server's folder is full")


def _claimed(root: pathlib.Path) -> int:
  """Makes a folder ours; the descriptor that holds its lock comes back.

  Raises:
    ValueError: it holds files and no marker, or another server holds the lock.
  """
  marker = root / MARKER
  root.mkdir(parents=True, exist_ok=True)
  if not marker.exists() and any(root.iterdir()):
    raise ValueError(
      f"--files={root} holds files and was not made by `rcmed serve`, which "
      "clears its sessions and scratch at every start: give a new or an empty "
      f"folder. If an earlier version made it, put an empty file {MARKER} "
      "into it."
    )
  held = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
  try:
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    os.close(held)
    raise ValueError(
      f"--files={root} is in use by another `rcmed serve`: stop that one, or "
      "give this one another folder."
    ) from error
  return held


def _one_of(folder: pathlib.Path) -> pathlib.Path:
  """The only file of a folder, else the folder."""
  found = list(folder.iterdir())
  return found[0] if len(found) == 1 else folder


def _told(place: pathlib.Path) -> dict[str, Any]:
  path = _one_of(place / _FILES)
  return {
    "ext": "" if path.is_dir() else "".join(path.suffixes[-2:]),
    "info": json.loads((place / _INFO).read_text(encoding="utf-8")),
  }


def _quoted(name: str, field: str) -> str:
  """A folder's name that stands for an id, and for no other.

  3D Slicer's ids are names of its nodes, "6: CT/thorax".

  Raises:
    BadFieldError: it is empty, too long, leads elsewhere as a path, or holds
      control characters.
  """
  parts = name.replace("\\", "/").split("/")
  quoted = urllib.parse.quote(name, safe=" ", errors="replace")
  if quoted.startswith("."):
    quoted = "%2E" + quoted[1:]
  if (
    not name.strip()
    or not name.isprintable()
    or {".", ".."} & set(parts)
    or len(quoted) > _LONGEST
  ):
    raise errors.BadFieldError(field, "expected a short, plain id", 400)
  return quoted
