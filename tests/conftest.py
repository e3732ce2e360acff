"""The world in which tests run; set before any of them imports jax.

Environment variables rather than `jax.config`, so that processes started by a
test live in the same world, and tests without jax stay free of it.
"""

import os
import pathlib
import signal

import pytest

_ROOT = pathlib.Path(__file__).parents[1]

# Eight devices show every sharding mistake that eight chips would. They share
# what cores there are, so one may keep the others waiting for long; XLA would
# abort the process where this is left at its default.
_FLAGS = (
  "--xla_force_host_platform_device_count=8",
  "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *_FLAGS))
# XLA's threads. A device holds one in each collective that it has begun; with
# as few as there are cores, eight devices have been seen to wait for each other
# without end, seven in one collective and three in another.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Shapes of unequal rank never broadcast by accident.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache/jax"))
# Toy programs compile in less than the default second, but there are many.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


# A shell that starts the tests with & has their children ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
  """Leaves out the compiler's optimizations where toys run a few times only.

  Compiling is most of what these tests do. Heavy ones are compiled as for use.
  """
  if config.option.markexpr == "not heavy":
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of released vectors and real images, where there is one."""
  path = pathlib.Path(os.environ.get("RCMED_SHARED", _ROOT.parent / "shared"))
  if not path.is_dir():
    pytest.skip(f"no shared data at {path}; RCMED_SHARED may name its folder")
  return path
