# SPDX-License-Identifier: Apache-2.0
"""Faster ways on a CPU; each answers None where it does not apply."""
