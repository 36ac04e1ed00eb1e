# SPDX-License-Identifier: Apache-2.0
"""A training run: the loop here, and its state, data and watchers beside it."""
