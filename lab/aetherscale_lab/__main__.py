"""Entry point of `python3 -m aetherscale_lab`."""

import sys

from aetherscale_lab.cli import main

sys.exit(main())
