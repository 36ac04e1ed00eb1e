# SPDX-License-Identifier: Apache-2.0
"""The tool check_dataset: looks for faults in images and masks."""
