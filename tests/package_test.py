"""What is shipped: the wheel's content, the lock file's pins."""

import re
import subprocess
import sys
import tomllib
import zipfile

import imports
import pytest

PROJECT = tomllib.loads(
  (imports.ROOT / "pyproject.toml").read_text(encoding="utf-8")
)["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
  folder = tmp_path_factory.mktemp("wheel")
  subprocess.run(
    [
      *(sys.executable, "-m", "pip", "wheel", imports.ROOT),
      # The build backend is in the lock; nothing is fetched.
      *("--no-deps", "--no-build-isolation", "--wheel-dir", folder),
    ],
    check=True,
  )
  return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_wheel_holds_package_and_configs_and_no_tests(wheel):
  held = {name for name in wheel.namelist() if ".dist-info/" not in name}
  configs = imports.ROOT.glob("configs/**/*.py")
  expected = {
    *(f"rcmed_jax/{path.relative_to(imports.ROOT)}" for path in configs),
    *(str(path.relative_to(imports.ROOT)) for path in imports.modules()),
  }
  assert expected <= held
  assert all(name.startswith("rcmed_jax/") for name in held)
  page = imports.PACKAGE / "serve" / "page"
  built = {path.name for path in page.glob("dist/*")}
  inside = {name for name in held if name.startswith("rcmed_jax/serve/page/")}
  assert inside == {f"rcmed_jax/serve/page/dist/{name}" for name in built}


def test_wheel_has_the_command_and_the_licence(wheel):
  texts = {
    name.split("/", 1)[1]: wheel.read(name).decode()
    for name in wheel.namelist()
    if ".dist-info/" in name
  }
  assert "rcmed = rcmed_jax.cli:main" in texts["entry_points.txt"]
  assert "Apache License" in texts["licenses/LICENSE"]


def test_lock_pins_every_dependency_with_hashes_and_names_no_index():
  lock = (imports.ROOT / "requirements.lock").read_text(encoding="utf-8")
  pinned = set(re.findall(r"^([a-z0-9-]+)==\S+.*\\\n +--hash=", lock, re.M))
  wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
  names = {re.match(r"[\w-]+", line).group().lower() for line in wanted}
  assert names <= pinned
  assert "://" not in lock
