# SPDX-License-Identifier: Apache-2.0
"""The tool prepare_dataset: masks and lists from others' annotations."""
