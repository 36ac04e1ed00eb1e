# SPDX-License-Identifier: Apache-2.0
from paddleseg_deeplab.cli.export import main

raise SystemExit(main())
