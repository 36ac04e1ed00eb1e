# SPDX-License-Identifier: Apache-2.0
"""The tool inspect_model: layers, receptive fields and memory of a network."""
