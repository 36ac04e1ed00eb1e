# SPDX-License-Identifier: Apache-2.0
from paddleseg_deeplab.cli.train import main

raise SystemExit(main())
