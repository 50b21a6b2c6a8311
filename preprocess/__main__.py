"""Entry of ``python -m preprocess``."""

import sys

from preprocess.cli import main

if __name__ == "__main__":
    sys.exit(main())
