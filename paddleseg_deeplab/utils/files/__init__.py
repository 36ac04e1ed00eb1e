# SPDX-License-Identifier: Apache-2.0
"""Finding files: in folders, and by paths that somebody wrote down."""
