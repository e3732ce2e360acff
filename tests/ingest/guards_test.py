"""Guards around libraries, held by threads that overlap."""

import contextlib
import logging
import threading
import warnings

import nibabel
import pytest

from rcmed_jax.ingest import guards
from rcmed_jax.ingest.dicom import privacy
from rcmed_jax.ingest.volumes import nifti


def _quiet():
  return logging.getLogger("pydicom").disabled


def _strict():
  return (
    nibabel.imageglobals.error_level == nifti._DAMAGED
    and nibabel.imageglobals.logger.disabled
  )


@pytest.mark.parametrize(
  ("guard", "holds"),
  [(privacy.quiet, _quiet), (lambda: nifti._STRICT, _strict)],
  ids=["quiet", "strict"],
)
def test_a_guard_lasts_until_the_last_thread_has_left(guard, holds):
  entered, leave = threading.Event(), threading.Event()

  def first():
    with guard():
      entered.set()
      leave.wait(10)

  assert not holds()
  thread = threading.Thread(target=first)
  thread.start()
  assert entered.wait(10)
  with guard():
    leave.set()
    thread.join(10)
    assert holds()
  assert not holds()


def test_two_guards_give_back_the_filters_that_were_there():
  before = list(warnings.filters)
  with contextlib.ExitStack() as one, contextlib.ExitStack() as other:
    one.enter_context(guards.NO_WARNINGS)
    other.enter_context(guards.NO_WARNINGS)
    one.close()
    with warnings.catch_warnings(record=True) as heard:
      warnings.warn("of a patient", stacklevel=1)
    assert not heard
  assert warnings.filters == before


def test_a_guard_that_is_left_by_an_error_is_left():
  with pytest.raises(KeyError), privacy.quiet():
    raise KeyError
  assert not _quiet()
