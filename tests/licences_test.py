"""docs/licences.md names what the lock files pin."""

import importlib.util
import re

import imports
import pytest

_SPEC = importlib.util.spec_from_file_location(
  "licences", imports.ROOT / "docs/licences.py"
)
assert _SPEC and _SPEC.loader
licences = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(licences)


def test_every_pinned_package_is_on_the_page():
  page = licences.PAGE.read_text(encoding="utf-8")
  rows = dict(re.findall(r"^\| ([\w.-]+) \| (\S+) \|", page, re.M))
  for lock in licences.LOCKS:
    missing = licences.pinned(imports.ROOT / lock).keys() - rows.keys()
    assert not missing, f"{lock}: run `python docs/licences.py`"
  users = licences.pinned(imports.ROOT / "requirements.lock")
  assert users == {name: rows[name] for name in users}


@pytest.mark.parametrize(
  ("package", "said"),
  [("numpy", "BSD-3-Clause"), ("jax", "Apache"), ("none-such", "not inst")],
)
def test_a_package_says_its_own(package, said):
  assert said in licences.licence(package)
