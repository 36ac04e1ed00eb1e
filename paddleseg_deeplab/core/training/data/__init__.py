# SPDX-License-Identifier: Apache-2.0
"""What a run reads: batches, and the order of epochs."""
