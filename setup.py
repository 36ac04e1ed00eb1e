# SPDX-License-Identifier: Apache-2.0
"""For tools that still call it; what the package is and needs stands in pyproject.toml."""

from setuptools import setup

setup()
