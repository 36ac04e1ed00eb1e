# SPDX-License-Identifier: Apache-2.0
"""``python -m paddleseg_deeplab VERB`` is the console command ``paddleseg-deeplab VERB``."""

import sys

from paddleseg_deeplab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
