# SPDX-License-Identifier: Apache-2.0
"""What looks on at a run: log, curves, pictures, checks before it, signals."""
