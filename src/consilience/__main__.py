"""``python -m consilience`` is the command line (torchrun needs a module to start)."""

import sys

from consilience.cli.main import main

sys.exit(main())
