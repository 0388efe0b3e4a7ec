# SPDX-License-Identifier: Apache-2.0
"""`python -m ssmis` is the command `ssmis`."""

import sys

from ssmis.cli import main

if __name__ == "__main__":
    sys.exit(main())
