# SPDX-License-Identifier: Apache-2.0
"""Predicts images with an exported network: python deploy/python/infer.py --help"""

from paddleseg_deeplab.cli.infer import main

raise SystemExit(main())
