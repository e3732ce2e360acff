"""Files that clients leave with the server: sessions, images, labels.

All lie below one folder, and nothing is written outside of it: names are base
names, folders are named by the server. A session belongs to the key that made
it and ends when its time is over; images and labels stay.
"""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
import shutil
import threading
import time
import uuid

from starlette.exceptions import HTTPException

from rcmed_jax.serve import errors, payload

# Of a session that nobody asks for, unless the client says less.
SESSION_S = 3600.0
# Sessions of all clients together.
MOST_SESSIONS = 100

# A file to be kept: its name as the client says it, and what writes it.
Incoming = tuple[str, Callable[[pathlib.Path], None]]


@dataclasses.dataclass
class Session:
  """Files of one image."""

  id: str
  owner: str | None  # name of a key
  folder: pathlib.Path
  names: tuple[str, ...]
  lasts_s: float
  until: float

  @property
  def paths(self) -> list[pathlib.Path]:
    """Its files."""
    return [self.folder / name for name in self.names]


class Shelf:
  """Keeps files. Safe to use from several threads.

  Args:
    root: the folder, which is made.
    most_bytes: of all that lies in it.
  """

  def __init__(self, root: pathlib.Path, *, most_bytes: int = 20 * 10**9):
    self._root = root.resolve()
    self._most_bytes = most_bytes
    self._sessions: dict[str, Session] = {}
    self._lock = threading.Lock()
    # Sessions of a server that was killed: nobody knows their ids any more.
    shutil.rmtree(self._root / "sessions", ignore_errors=True)
    for name in ("sessions", "images", "labels"):
      (self._root / name).mkdir(parents=True, exist_ok=True)

  def open_session(
    self,
    incoming: Sequence[Incoming],
    *,
    owner: str | None,
    lasts_s: float = SESSION_S,
  ) -> Session:
    """A session with these files.

    Raises:
      BadFieldError: a name is none, or given twice.
      HTTPException: 429, there are too many; 507, there is no room.
    """
    names = tuple(payload.base_name(name, "files") for name, _ in incoming)
    if len(set(names)) < len(names):
      raise errors.BadFieldError("files", "a name is given twice", 400)
    self._check_room()
    lasts_s = min(max(lasts_s, 1.0), SESSION_S)
    folder = self._root / "sessions" / uuid.uuid4().hex
    session = Session(
      folder.name, owner, folder, names, lasts_s, time.monotonic() + lasts_s
    )
    with self._lock:
      self._expire()
      if len(self._sessions) >= MOST_SESSIONS:
        raise errors.later(429, "there are too many sessions", 60)
      self._sessions[session.id] = session
    folder.mkdir()
    for path, (_, write) in zip(session.paths, incoming, strict=True):
      write(path)
    return session

  def session(self, name: str, owner: str | None) -> Session:
    """A session of this owner, which then lasts longer.

    Raises:
      HTTPException: 404, there is none.
    """
    with self._lock:
      self._expire()
      found = self._sessions.get(name)
      if found is None or found.owner != owner:
        raise HTTPException(404, "there is no such session")
      found.until = time.monotonic() + found.lasts_s
      return found

  def close_session(self, name: str, owner: str | None) -> None:
    """Ends a session; see `session`."""
    found = self.session(name, owner)
    with self._lock:
      self._sessions.pop(found.id, None)
    shutil.rmtree(found.folder, ignore_errors=True)

  def put_image(self, name: str, incoming: Incoming) -> str:
    """Keeps an image; its id comes back.

    Args:
      name: the id; "": the file's name.
    """
    self._check_room()
    found = payload.base_name(name or incoming[0], "image")
    incoming[1](self._root / "images" / found)
    return found

  def put_label(self, image: str, tag: str, incoming: Incoming) -> str:
    """Keeps a label of an image; its id, the image's, comes back.

    Raises:
      HTTPException: 404, there is no such image.
    """
    self._check_room()
    self.image(image)
    folder = self._labels(tag) / payload.base_name(image, "image")
    name = payload.base_name(incoming[0], "label")
    shutil.rmtree(folder, ignore_errors=True)  # one label an image and tag
    folder.mkdir(parents=True)
    incoming[1](folder / name)
    return folder.name

  def image(self, name: str) -> pathlib.Path:
    """The file of an image.

    Raises:
      HTTPException: 404, there is none.
    """
    path = self._root / "images" / payload.base_name(name, "image")
    if not path.is_file():
      raise HTTPException(404, "there is no such image")
    return path

  def label(self, name: str, tag: str) -> pathlib.Path:
    """The file of an image's label.

    Raises:
      HTTPException: 404, there is none.
    """
    folder = self._labels(tag) / payload.base_name(name, "label")
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if not found:
      raise HTTPException(404, "there is no such label")
    return found[0]

  def images(self) -> dict[str, list[str]]:
    """Tags of the labels of every image."""
    tags = sorted((self._root / "labels").iterdir())
    return {
      path.name: [tag.name for tag in tags if (tag / path.name).is_dir()]
      for path in sorted((self._root / "images").iterdir())
    }

  def _labels(self, tag: str) -> pathlib.Path:
    return self._root / "labels" / payload.base_name(tag or "final", "tag")

  def _expire(self) -> None:
    """Ends sessions whose time is over. Under the lock."""
    now = time.monotonic()
    for name in [n for n, one in self._sessions.items() if one.until < now]:
      shutil.rmtree(self._sessions.pop(name).folder, ignore_errors=True)

  def _check_room(self) -> None:
    """Whether there is room for more; one request may pass the limit."""
    held = sum(
      path.stat().st_size for path in self._root.rglob("*") if path.is_file()
    )
    if held >= self._most_bytes:
      raise HTTPException(507, "the server's folder is full")
