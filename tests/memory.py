"""How much memory a test's process has held."""

import pathlib
import re


def peak_bytes() -> int:
  """The most this program held at once, since it began.

  `getrusage` keeps, through `exec`, what the process that started it held;
  Linux' own count of the program's memory begins anew.
  """
  status = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024
