# SPDX-License-Identifier: Apache-2.0
"""The tool convert_weights: weights of other projects."""
