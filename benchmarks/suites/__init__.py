# SPDX-License-Identifier: Apache-2.0
"""The suites of run.py: a module each, whose `rows(options)` yields `harness.Row`s."""
