"""RCMed on JAX: medical images and words, correlated in a closed loop.

import rcmed_jax

assistant = rcmed_jax.Assistant.load("runs/mine")
answer = assistant.segment("scan.png", ["liver", "spleen"])
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# What Python programs need, and where it lies. It is imported when it is first
# used, so that `import rcmed_jax` takes no time and needs no JAX.
_FACE = {
  "Assistant": "rcmed_jax.apps.answering",
  "Question": "rcmed_jax.serve.questions",
  "Sampling": "rcmed_jax.serve.questions",
}


def __getattr__(name: str) -> Any:
  if name not in _FACE:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_FACE[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_FACE})
