"""What the drills share: data, a run without a break, and a stopped one."""

import functools
import pathlib
import random
import shutil
import signal

import drilling
import jax
import pytest
import trained_once

from rcmed_jax import cli
from rcmed_jax.data import phantoms
from rcmed_jax.parallel import hosts
from rcmed_jax.parallel import mesh as meshes


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("drills") / "data"
  phantoms.write(folder, drilling.IMAGES, seed=0)
  return folder


@pytest.fixture(scope="session")
def afresh(data):
  """Runs training in this process; its exit code.

  On one device, as the children, whatever this process has.
  """
  one = functools.partial(meshes.make_mesh, devices=jax.devices()[:1])

  def run(workdir, *more) -> int:
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(meshes, "make_mesh", one)
      return cli.main(drilling.flags(workdir, data, *more))

  return run


@pytest.fixture(scope="session")
def go_on(afresh):
  """The same, for runs whose step is one: it is compiled once for all."""
  parts = trained_once.Parts()

  def run(workdir, *more) -> int:
    with pytest.MonkeyPatch.context() as patch:
      parts.put(patch)
      return afresh(workdir, *more)

  return run


@pytest.fixture(scope="session")
def whole(go_on, tmp_path_factory) -> pathlib.Path:
  """The folder of a run without a break."""
  workdir = tmp_path_factory.mktemp("drills") / "whole"
  assert go_on(workdir) == 0
  assert drilling.saved_steps(workdir) == [8, 10, 12]
  return workdir


@pytest.fixture(scope="session")
def stopped(data, tmp_path_factory) -> pathlib.Path:
  """The folder of a run that SIGTERM stopped at some step, with 3 saved."""
  workdir = tmp_path_factory.mktemp("drills") / "stopped"
  child = drilling.start(drilling.flags(workdir, data))
  wanted = random.randrange(6, drilling.STEPS - 1)
  drilling.wait(child, lambda: len(drilling.rows(workdir)) >= wanted)
  child.send_signal(signal.SIGTERM)
  code, said = drilling.finish(child)
  assert code == hosts.STOPPED, said
  assert "Stopped by SIGTERM after step" in said
  assert wanted <= drilling.saved_steps(workdir)[-1] <= drilling.STEPS
  return workdir


@pytest.fixture
def workdir(stopped, tmp_path) -> pathlib.Path:
  """A copy of the stopped run."""
  return pathlib.Path(shutil.copytree(stopped, tmp_path / "run"))
