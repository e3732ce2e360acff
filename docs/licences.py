"""Writes docs/licences.md: the licence of every package that a lock pins.

  python docs/licences.py

What a package says of itself, where it is installed; what is pinned for another
platform only, or not installed, is told as that.
"""

import importlib.metadata
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"

# Lock file -> whom its packages reach.
LOCKS = {
  "requirements.lock": "users and developers",
  "requirements-reference.lock": "tests against PyTorch",
  "requirements-compiler.lock": "compiling for TPUs",
  "requirements-launch.lock": "tests of launch files",
  "requirements-page.lock": "tests of the page",
}

# A licence that fills its field with its whole text is named by its first line.
_LONGEST = 60
_DEBIAN = "Files: *"  # the first line of Debian's form of such a text
_UNKNOWN = "not told"


def main() -> None:
  """Writes the page."""
  PAGE.write_text(page(), encoding="utf-8")
  print(f"licences: written to {PAGE}")


def pinned(lock: pathlib.Path) -> dict[str, str]:
  """Versions by name; of a package that is pinned twice, the last."""
  text = lock.read_text(encoding="utf-8")
  found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.M)
  return dict(found)


def page() -> str:
  """The page as Markdown."""
  parts = [
    "# Licences of the packages that are used",
    "Written by `python docs/licences.py`, not by hand: what each package says "
    "of itself in its metadata. rcmed-jax is under Apache-2.0 and ships none "
    "of them.",
  ]
  done: set[str] = set()
  for name, whom in LOCKS.items():
    rows = [
      f"| {package} | {version} | {licence(package)} |"
      for package, version in sorted(pinned(ROOT / name).items())
      if package not in done
    ]
    done |= set(pinned(ROOT / name))
    table = ["| package | version | licence |", "|---|---|---|", *rows]
    parts += [f"## {name}: {whom}", "\n".join(table)]
  return "\n\n".join(parts) + "\n"


def licence(package: str) -> str:
  """What an installed package says; else that it is not installed."""
  try:
    told = importlib.metadata.metadata(package)
  except importlib.metadata.PackageNotFoundError:
    return "not installed here"
  classifiers = [
    one.split(" :: ")[-1]
    for one in told.get_all("Classifier") or []
    if one.startswith("License :: ") and one != "License :: OSI Approved"
  ]
  text = (told.get("License") or "").strip().splitlines()[:1]
  short = [line for line in text if len(line) <= _LONGEST and line != _DEBIAN]
  expression = told.get("License-Expression")
  named = [expression] if expression else short or classifiers
  files = told.get_all("License-File") or []
  if not named and files:
    return f"see its {', '.join(files[:2])}"
  return ", ".join(named).replace("|", "/") or _UNKNOWN


if __name__ == "__main__":
  main()
