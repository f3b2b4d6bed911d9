"""`python -m diracnets` does what the `diracnets` command does."""

import sys

from diracnets.cli import main

if __name__ == "__main__":
    sys.exit(main())
