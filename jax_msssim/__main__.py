"""``python -m jax_msssim``: the command line."""

import sys

from jax_msssim.cli import main

sys.exit(main())
