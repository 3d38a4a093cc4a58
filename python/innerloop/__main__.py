# SPDX-License-Identifier: Apache-2.0
"""``python -m innerloop`` is the ``innerloop`` command."""

import sys

from innerloop.cli import main

if __name__ == "__main__":
    sys.exit(main())
