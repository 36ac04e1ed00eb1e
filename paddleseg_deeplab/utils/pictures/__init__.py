# SPDX-License-Identifier: Apache-2.0
"""Drawing on pictures, and what picture files are made of."""
