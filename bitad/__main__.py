"""`python -m bitad`, and `torchrun -m bitad`."""

import sys

from bitad.cli import main

if __name__ == "__main__":
    sys.exit(main())
