"""Reads the house's imports from its source, without running any of it.

A *room* is a folder of the package (`data`) or a module at its top (`axes`).
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "rcmed_jax"


def modules(folder: pathlib.Path = PACKAGE) -> list[pathlib.Path]:
  return sorted(folder.rglob("*.py"))


def room(path: pathlib.Path) -> str:
  """The room that a file of the package lies in."""
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: pathlib.Path) -> set[str]:
  """The rooms that a file imports, wherever in the file it does so."""
  names = {tuple(name.split(".")[:2]) for name in names_imported(path)}
  return {
    room(module) for module in modules() if ("rcmed_jax", room(module)) in names
  }


def names_imported(path: pathlib.Path) -> set[str]:
  """Dotted names of all modules, or things in them, that a file imports."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      if node.level:
        raise ValueError(f"{path}:{node.lineno}: relative import; write it out")
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names
