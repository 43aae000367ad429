"""`python -m argprune` is the command `argprune`."""

import sys

from argprune.cli import main

sys.exit(main())
