"""Codes that a process leaves with, and which errors may pass by themselves."""

import errno
import socket

# Exit code of a run that SIGTERM stopped and that saved first: start it again.
# 128 + 15 would not tell it from a process that SIGTERM killed. Source:
# EX_TEMPFAIL of sysexits.h, "the user is invited to retry".
STOPPED = 75

# Exit code where another process of the run is gone. No 75: that would let a
# run whose process dies each time start again for ever. Source: EX_PROTOCOL of
# sysexits.h, "remote error in protocol".
LOST = 76

# Exit code of the watchdog. No 75 either: a hang may come back each time.
HUNG = 77

# Exit code where a bucket or a service did not answer. No 2: it may next time.
# Source: EX_UNAVAILABLE of sysexits.h, "a service is unavailable".
UNREACHED = 69

_ERRNOS = (
  errno.EAGAIN,
  errno.EHOSTDOWN,
  errno.EHOSTUNREACH,
  errno.ENETDOWN,
  errno.ENETRESET,
  errno.ENETUNREACH,
  errno.ESTALE,  # of a network's file system
)

# How TensorStore begins, or goes on, where a bucket does not answer. Source:
# the codes that its drivers try again, absl's canonical ones.
_STATUSES = ("UNAVAILABLE: ", "DEADLINE_EXCEEDED: ", "ABORTED: ")


def is_passing(error: BaseException | None) -> bool:
  """Whether it tells of a network or a service, and not of input or files."""
  if isinstance(error, (ConnectionError, TimeoutError, socket.gaierror)):
    return not isinstance(error, BrokenPipeError)  # of our own output
  if isinstance(error, OSError) and error.errno in _ERRNOS:
    return True
  return isinstance(error, (OSError, ValueError)) and any(
    status in str(error) for status in _STATUSES
  )
