# SPDX-License-Identifier: Apache-2.0
"""Image and label files in."""
