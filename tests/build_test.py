"""BUILD says what the code is: the same rooms, the same edges, every test.

Run as a program, `python tests/build_test.py`, it writes the table of tests.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import imports
import pytest

ENTRANCE = "__init__"
# `rcmed COMMAND` imports its app by name when it runs.
LAZY = {"cli": {"apps"}}
ROOMS = sorted(
  {imports.room(path) for path in imports.modules()} - {ENTRANCE, "__main__"}
)
TESTS = sorted(imports.ROOT.glob("tests/**/*_test.py"))
SUPPORT = sorted(set(imports.ROOT.glob("tests/**/*.py")) - set(TESTS))

# Debian's Bazel fetches these repositories for any test of any language; a
# folder of this content stands in for each, so that nothing is fetched.
STUBS = {
  "rules_python/python/defs.bzl": """
py_binary = native.py_binary
py_library = native.py_library
py_test = native.py_test
""",
  "rules_cc/cc/defs.bzl": """
cc_binary = native.cc_binary
cc_import = native.cc_import
cc_library = native.cc_library
cc_test = native.cc_test
cc_toolchain = native.cc_toolchain
cc_toolchain_suite = native.cc_toolchain_suite
""",
  "rules_java/java/defs.bzl": """
java_binary = native.java_binary
java_import = native.java_import
java_library = native.java_library
java_runtime = native.java_runtime
java_toolchain = native.java_toolchain
""",
  "remote_coverage_tools/BUILD": """
filegroup(
    name = "coverage_report_generator",
    visibility = ["//visibility:public"],
)
""",
}
PLATFORMS = pathlib.Path("/usr/share/bazel/platforms")


def _read_build() -> dict[str, dict]:
  """Name -> attributes of each rule. BUILD is Python enough to be run."""
  rules = {}

  def rule(**attributes):
    rules[attributes["name"]] = attributes

  def glob(patterns, exclude=(), allow_empty=False):
    found = {path for item in patterns for path in imports.ROOT.glob(item)}
    out = {path for item in exclude for path in imports.ROOT.glob(item)}
    return sorted(
      path.relative_to(imports.ROOT).as_posix()
      for path in found - out
      if path.is_file() and "__pycache__" not in path.parts
    )

  def ignore(*arguments, **attributes):
    pass

  scope = {"load": ignore, "package": ignore, "glob": glob}
  scope |= dict.fromkeys(("py_binary", "py_library", "py_test"), rule)
  exec((imports.ROOT / "BUILD").read_text(encoding="utf-8"), scope)
  return rules


def _deps(rule: dict) -> set[str]:
  return {name.removeprefix(":") for name in rule.get("deps", [])}


def _imported(paths: list[pathlib.Path]) -> set[str]:
  """The rooms that files import, with `axes`, which holds the entrance."""
  found = set().union(*map(imports.rooms_imported, paths))
  return found - {ENTRANCE} | ({"axes"} if found else set())


def _deps_line(rooms: set[str]) -> str:
  return f"deps = {json.dumps([f':{room}' for room in sorted(rooms)])},"


def _rooms_tested(path: pathlib.Path) -> set[str]:
  """The rooms that a test file imports; all, where it reads their source."""
  if "imports" in imports.names_imported(path):
    return set(ROOMS)
  return _imported([path])


def _test_line(path: pathlib.Path) -> str:
  rooms = sorted(_rooms_tested(path))
  value = "ROOMS" if rooms == ROOMS else f'"{" ".join(rooms)}"'
  return f'"{path.relative_to(imports.ROOT).as_posix()}": {value},'


@pytest.fixture(scope="module")
def rules() -> dict[str, dict]:
  return _read_build()


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_a_library_with_its_imports(rules, room):
  assert room in rules, f'BUILD lacks py_library(name = "{room}", ...)'
  files = {
    path
    for path in imports.PACKAGE.rglob("*")
    if path.is_file() and imports.room(path) == room
    if "__pycache__" not in path.parts
  }
  held = rules[room]["srcs"] + rules[room].get("data", [])
  missing = files - {imports.ROOT / file for file in held}
  assert not missing, f'BUILD, "{room}": neither srcs nor data hold these'
  code = [path for path in files if path.suffix == ".py"]
  expected = _imported(code) | {"axes"} | LAZY.get(room, set())
  expected -= {room}
  line = _deps_line(expected)
  assert _deps(rules[room]) == expected, f'BUILD, "{room}": write {line}'


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_every_test_file_is_a_test_with_its_imports(rules, path):
  name = path.relative_to(imports.ROOT).as_posix()
  found = [rule for rule in rules.values() if name in rule["srcs"]]
  remedy = f"BUILD, TESTS needs the line\n    {_test_line(path)}"
  assert found, remedy
  assert _deps(found[0]) - {"testing"} == _rooms_tested(path), remedy


def test_support_of_the_tests_is_a_library_with_its_imports(rules):
  held = {imports.ROOT / name for name in rules["testing"]["srcs"]}
  assert held == set(SUPPORT)
  expected = _imported(SUPPORT)
  line = _deps_line(expected)
  assert _deps(rules["testing"]) == expected, f'BUILD, "testing": write {line}'


def test_nothing_in_build_is_without_files(rules):
  for name, rule in rules.items():
    assert rule["srcs"], f"BUILD: {name} has no files; take it out"
    for file in rule["srcs"]:
      assert (imports.ROOT / file).is_file(), f"BUILD: {name} lists {file}"


def test_bazel_builds_all_and_runs_a_test(tmp_path):
  bazel = shutil.which("bazel")
  if bazel is None:
    pytest.skip("bazel is not installed")
  if not PLATFORMS.is_dir():
    pytest.skip(f"bazel's platforms are not at {PLATFORMS}")
  house = _workspace(tmp_path)
  command = [bazel, f"--output_user_root={tmp_path / 'out'}"]

  def run(*arguments: str) -> None:
    result = subprocess.run(
      [*command, *arguments],
      cwd=house,
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr

  try:
    run("build", "//...")
    run("test", "//:cli_test")
  finally:
    run("shutdown")


def _workspace(folder: pathlib.Path) -> pathlib.Path:
  """A copy of the house as a Bazel workspace that needs no network."""
  house = folder / "house"
  for name in ("rcmed_jax", "configs", "launch", "tests"):
    shutil.copytree(imports.ROOT / name, house / name)
  for path in imports.ROOT.iterdir():
    if path.is_file():
      shutil.copy(path, house)
  repositories = {"platforms": PLATFORMS}
  for name, text in STUBS.items():
    repository = pathlib.Path(name).parts[0]
    repositories[repository] = folder / repository
    path = folder / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    for file in (path.parent / "BUILD", folder / repository / "WORKSPACE"):
      file.touch()
  (house / "WORKSPACE").touch()
  python = pathlib.Path(sys.executable).parent
  search = os.pathsep.join([str(python), "/usr/bin", "/bin"])
  lines = [
    *(
      f"common --override_repository={name}={path}"
      for name, path in repositories.items()
    ),
    f"build --action_env=PATH={search}",
    f"build --test_env=PATH={search}",
    "build --test_output=errors",
  ]
  (house / ".bazelrc").write_text("\n".join(lines) + "\n")
  return house


def _write_tests() -> None:
  build = imports.ROOT / "BUILD"
  before, rest = build.read_text(encoding="utf-8").split("TESTS = {\n")
  after = rest.split("}\n", 1)[1]
  lines = "".join(f"    {_test_line(path)}\n" for path in TESTS)
  build.write_text(f"{before}TESTS = {{\n{lines}}}\n{after}", encoding="utf-8")


if __name__ == "__main__":
  _write_tests()
