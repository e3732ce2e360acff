"""No file from outside is unpickled: to unpickle it is to run what it says.

Read from the source, so that it holds for paths that no test takes.
"""

import ast
from collections.abc import Iterator
import pathlib
import textwrap

import imports
import pytest

ROOTS = ("rcmed_jax", "configs", "launch", "benchmarks", "docs")

# Whatever they read may run code.
NEVER = {
  "cloudpickle.load",
  "cloudpickle.loads",
  "dill.load",
  "dill.loads",
  "joblib.load",
  "marshal.load",
  "marshal.loads",
  "pandas.read_pickle",
  "pickle.Unpickler",
  "pickle._Unpickler",
  "pickle.load",
  "pickle.loads",
  "shelve.open",
  "yaml.full_load",
  "yaml.unsafe_load",
}
# Unless they are told not to: (argument, the names or values that are safe).
UNLESS = {
  "torch.load": ("weights_only", {"True"}),
  "yaml.load": ("Loader", {"yaml.SafeLoader", "yaml.CSafeLoader"}),
}
# Arguments that allow it, of whatever function.
ARGUMENTS = {"allow_pickle": "False", "weights_only": "True"}

# Refuses all but tensors; see tests/convert/torch_pickle_test.py.
RESTRICTED = ("rcmed_jax/convert/torch_pickle.py", "pickle.Unpickler")

FILES = [
  pytest.param(path, id=path.relative_to(imports.ROOT).as_posix())
  for root in ROOTS
  for path in imports.modules(imports.ROOT / root)
]


def unpicklings(text: str) -> Iterator[str]:
  """What of a module's text unpickles, "name" or "argument=value"."""
  tree = ast.parse(text)
  known = _aliases(tree)

  def name(node: ast.AST) -> str:
    dotted = ast.unparse(node)
    first, dot, rest = dotted.partition(".")
    return known.get(first, first) + dot + rest

  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute | ast.Name) and name(node) in NEVER:
      yield name(node)
    if not isinstance(node, ast.Call):
      continue
    told = {word.arg: name(word.value) for word in node.keywords}
    for argument, safe in ARGUMENTS.items():
      if told.get(argument, safe) != safe:
        yield f"{argument}={told[argument]}"
    if name(node.func) in UNLESS:
      argument, safe = UNLESS[name(node.func)]
      if told.get(argument) not in safe:
        yield name(node.func)


def _aliases(tree: ast.Module) -> dict[str, str]:
  """What a module's own names stand for."""
  found = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        if alias.asname:
          found[alias.asname] = alias.name
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
  return found


@pytest.mark.parametrize("path", FILES)
def test_nothing_unpickles_but_the_reader_that_refuses(path: pathlib.Path):
  found = set(unpicklings(path.read_text(encoding="utf-8")))
  if path == imports.ROOT / RESTRICTED[0]:
    assert found == {RESTRICTED[1]}
  else:
    assert not found, f"{path} unpickles; read it by convert/torch_pickle.py"


def test_the_reader_says_itself_what_may_be_named():
  path = imports.ROOT / RESTRICTED[0]
  classes = [
    node
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.ClassDef)
    if RESTRICTED[1] in map(ast.unparse, node.bases)
  ]
  (reader,) = classes
  methods = {
    node.name for node in reader.body if isinstance(node, ast.FunctionDef)
  }
  assert {"find_class", "persistent_load"} <= methods


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("import pickle; pickle.load(f)", ["pickle.load"]),
    ("from pickle import loads as read; read(b)", ["pickle.loads"]),
    ("import pickle as p\nclass A(p.Unpickler): pass", ["pickle.Unpickler"]),
    ("import torch; torch.load(p)", ["torch.load"]),
    ("import torch; torch.load(p, weights_only=True)", []),
    (
      "import torch; torch.load(p, weights_only=False)",
      ["weights_only=False", "torch.load"],
    ),
    ("import numpy as np; np.load(p)", []),  # refuses objects by itself
    (
      "import numpy as np; np.load(p, allow_pickle=True)",
      ["allow_pickle=True"],
    ),
    ("read(p, allow_pickle=told)", ["allow_pickle=told"]),
    ("import yaml; yaml.load(f)", ["yaml.load"]),
    ("import yaml; yaml.load(f, Loader=yaml.SafeLoader)", []),
    ("import yaml; yaml.safe_load(f)", []),
    ("import pickle; pickle.dumps(x)", []),
    ("import json; json.load(f)", []),
  ],
)
def test_what_is_looked_for_is_found(text, found):
  assert list(unpicklings(textwrap.dedent(text))) == found
