# SPDX-License-Identifier: Apache-2.0
"""What a run keeps: checkpoints, and where it stands."""
