# SPDX-License-Identifier: Apache-2.0
"""A trained network outside of training: export, comparison, runtimes."""
