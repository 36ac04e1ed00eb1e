# SPDX-License-Identifier: Apache-2.0
"""The tool recipes: the configs that come with the package."""
