# SPDX-License-Identifier: Apache-2.0
"""What stands around a network: reading, batches, sizes, scores, results. No Paddle."""
