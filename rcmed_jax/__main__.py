"""`python -m rcmed_jax COMMAND` is `rcmed COMMAND`."""

import sys

from rcmed_jax import cli

if __name__ == "__main__":
  sys.exit(cli.main())
