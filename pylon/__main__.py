"""``python -m pylon`` is the ``pylon`` command, and so is the program that ``make binary`` makes of this module."""

import sys

from pylon import ourselves
from pylon.cli.main import main

if __name__ == "__main__" and not (ourselves.frozen() and ourselves.begin(sys.argv[1:])):
    main()
