import hashlib
import os
import signal
import threading
import time

import pytest

from rcmed_jax.parallel import faults
from rcmed_jax.train import stopping


def test_a_signal_is_told_while_the_main_thread_waits_outside_of_python():
  told = []
  handler = signal.getsignal(signal.SIGTERM)
  with stopping.Signals(lambda number: told.append((number, time.monotonic()))):
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    # As a wait for devices: no line of Python runs before it is done.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)
    back = time.monotonic()
    timer.join()
  assert signal.getsignal(signal.SIGTERM) is handler
  number, at = told[0]
  assert number == signal.SIGTERM and at < back
  assert len(told) <= 2


def test_a_second_signal_acts_at_once():
  told = []
  with pytest.raises(KeyboardInterrupt), stopping.Signals(told.append):
    os.kill(os.getpid(), signal.SIGINT)
    assert signal.SIGINT in told
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
  assert signal.set_wakeup_fd(-1) == -1  # as before


def test_outside_of_the_main_thread_nothing_is_told():
  def enter():
    with stopping.Signals(lambda number: None):
      pass

  thread = threading.Thread(target=enter)
  thread.start()
  thread.join()


def test_only_a_scheduler_s_signal_asks_to_come_back():
  assert stopping.exit_code(signal.SIGTERM) == faults.STOPPED
  assert stopping.exit_code(signal.SIGINT) == 130
