# SPDX-License-Identifier: Apache-2.0
"""The tool search_crf: looks for the dense CRF's parameters."""
